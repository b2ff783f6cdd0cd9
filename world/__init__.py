"""A small world with a known truth, the checkpoint that is trained on it, and its training."""
