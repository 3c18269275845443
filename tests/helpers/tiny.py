"""Small models, one of each family."""

from gist_jax.models.config import LlamaConfig, T5Config

# The weights are large, so that logits differ widely and the likeliest token is never a near tie.
TINY = {
    "llama": LlamaConfig(
        vocab_size=41,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_positions=512,
        initializer_range=0.3,
    ),
    "t5": T5Config(
        vocab_size=41,
        hidden_size=32,
        intermediate_size=48,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        head_dim=8,
        gated_gelu=True,
        tie_embeddings=False,
        scale_outputs=False,
        initializer_factor=1.0,
    ),
}
