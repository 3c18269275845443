"""Flax NNX language models that take explicit positions, attention bias arrays and caches."""
