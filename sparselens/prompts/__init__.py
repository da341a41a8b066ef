"""Prompt pairs as strings and tokens, tasks that draw them, and metrics that score a model's answers."""
