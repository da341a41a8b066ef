"""What is asked of a (dense, sparse) pair of models, and how the answers are drawn."""
