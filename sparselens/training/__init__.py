"""Constrained post-training: minimise the number of open attention edges at a given task loss."""
