"""Examples (instruction, input, output) and their way to batches of token ids."""
