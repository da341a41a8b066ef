"""Activation patching: what a model does when an activation is replaced by that of another run."""
