"""Training: configuration, state, sharding, the compiled step, the loop and its checkpoints."""
