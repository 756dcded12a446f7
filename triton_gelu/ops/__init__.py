"""The fused operators: each says what its tensors are, and how each backend computes it."""
