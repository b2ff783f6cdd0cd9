"""Training of the Story World's checkpoint: plain PyTorch, resumable, on a GPU or on two CPU cores."""
