"""What sparse attention costs, and what its heads do."""
