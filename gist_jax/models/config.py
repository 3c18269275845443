"""Shapes and constants of a model, as hashable dataclasses (static arguments of jitted functions)."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """A model of the LLaMA family. Letters in parentheses are those used in shape comments."""

    vocab_size: int  # (V)
    hidden_size: int  # (D)
    intermediate_size: int  # (F)
    num_layers: int  # (L)
    num_heads: int  # (N)
    num_kv_heads: int  # (K); fewer than N is grouped-query attention
    head_dim: int  # (H)
    max_positions: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < 1:
                raise ValueError(f"{field.name} of a model must be at least 1, but is {value}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, but is {self.head_dim}")
