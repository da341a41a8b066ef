"""sparselens turns a dense transformer into a sparse-attention one with the same loss, to compare what the two compute."""

__version__ = "0.1.0"
