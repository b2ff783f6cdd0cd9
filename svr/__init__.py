"""Prompt embeddings of a story: consolidation, token spans, naive and singular-value reweighting."""
