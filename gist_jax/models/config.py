"""Shapes and constants of a model, as hashable dataclasses (static arguments of jitted functions)."""

import dataclasses
import math
from typing import Any, ClassVar, Literal


class _Checked:
    """Refuses sizes that are too small and constants that are not positive numbers."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # every subclass is a dataclass

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = (int, float) if field.type is float else field.type
            if isinstance(numbers, type | tuple) and (
                not isinstance(value, numbers) or isinstance(value, bool) != (field.type is bool)
            ):
                raise ValueError(f"{field.name} of a model cannot be {value!r}")
            least = field.metadata.get("least", 1)
            if field.type is int and not least <= value < 2**31:
                raise ValueError(f"{field.name} of a model must be at least {least}, but is {value}")
            # JAX takes no larger whole numbers in place of floating ones.
            if field.type is float and not 0 < value < (2**31 if isinstance(value, int) else 1e18):
                raise ValueError(f"{field.name} of a model must be above 0 and not huge, but is {value}")
        sizes: Any = self
        widest = max(sizes.vocab_size, sizes.intermediate_size, sizes.num_heads * sizes.head_dim)
        if sizes.hidden_size * widest * sizes.num_layers >= 2**48:
            raise ValueError("no model is as large as its sizes say")


LLAMA_KINDS = ("llama", "mistral", "qwen2", "qwen3")
ROPE_SCALINGS = ("none", "linear", "dynamic", "llama3")


@dataclasses.dataclass(frozen=True)
class LlamaConfig(_Checked):
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
    # Qwen2 has biases on queries, keys and values, Qwen3 norms of queries and keys.
    kind: str = "llama"
    # "linear" divides the frequencies of positions by the factor, "dynamic" would do it beyond
    # max_positions, and "llama3" does it to low frequencies: wholly to those with fewer than
    # `low_freq_factor` wavelengths in the original positions, in part to those with fewer than
    # `high_freq_factor`.
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_positions: int = 8192

    family: ClassVar[str] = "llama"
    # A decoder alone: the output continues the prompt itself, whose tokens see no later ones.
    is_encoder_decoder: ClassVar[Literal[False]] = False
    relative_positions: ClassVar[bool] = False  # whether only distances between tokens are computed
    has_dropout: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})"
            )
        for name, choices in (("kind", LLAMA_KINDS), ("rope_scaling", ROPE_SCALINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {', '.join(choices)}")
        if self.rope_scaling == "llama3" and self.rope_low_freq_factor >= self.rope_high_freq_factor:
            raise ValueError("rope_low_freq_factor must be below rope_high_freq_factor")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, but is {self.head_dim}")


@dataclasses.dataclass(frozen=True)
class T5Config(_Checked):
    """A model of the T5 family: v1.0 by default; v1.1 and FLAN have `gated_gelu` and neither tied
    embeddings nor scaled outputs. Letters in parentheses are those used in shape comments.
    """

    vocab_size: int  # (V)
    hidden_size: int  # (D)
    intermediate_size: int  # (F)
    num_layers: int  # of the encoder (L)
    num_decoder_layers: int
    num_heads: int  # (N)
    head_dim: int  # (H)
    # What the decoder reads in place of a token before the first.
    decoder_start_token: int = dataclasses.field(default=0, metadata={"least": 0})
    gated_gelu: bool = False  # otherwise ReLU
    tie_embeddings: bool = True
    scale_outputs: bool = True  # by 1/sqrt(D) before the head
    num_buckets: int = 32  # of relative positions
    max_distance: int = 128  # from which on all relative positions share a bucket
    norm_eps: float = 1e-6
    initializer_factor: float = 1.0

    family: ClassVar[str] = "t5"
    # The encoder reads the prompt, whose tokens see each other; the decoder writes the output.
    is_encoder_decoder: ClassVar[Literal[True]] = True
    has_dropout: ClassVar[bool] = True
    relative_positions: ClassVar[bool] = True
    max_positions: ClassVar[float] = math.inf  # distances have no limit

    @property
    def num_kv_heads(self) -> int:
        """Every head has keys and values of its own."""
        return self.num_heads

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_start_token >= self.vocab_size:
            raise ValueError(f"decoder_start_token ({self.decoder_start_token}) is no token")
        if self.num_buckets % 4 or self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"num_buckets ({self.num_buckets}) must be a multiple of 4, and max_distance "
                f"({self.max_distance}) more than half of it"
            )


ModelConfig = LlamaConfig | T5Config
