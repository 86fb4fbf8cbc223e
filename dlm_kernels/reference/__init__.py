"""The specification: every op in plain PyTorch, written to be read. Other backends are tested against these functions."""
