"""The engine behind all analyses: one request, its runs, gradients and batches, and how they resume."""
