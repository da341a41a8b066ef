"""The same analyses of two models: compute, keep, tabulate, draw and report."""
