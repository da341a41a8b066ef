"""Constrained post-training: as few open edges as the task loss allows."""
