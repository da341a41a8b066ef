"""Prompt pairs as strings and as tokens, the tasks that draw them, and the metrics that score a model's answers."""
