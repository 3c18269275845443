"""Weights and tokenizers from and to the Hugging Face world."""
