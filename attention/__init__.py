"""Attention of a story's frames: identity-preserving cross-attention, consistent self-attention, and their run-time."""
