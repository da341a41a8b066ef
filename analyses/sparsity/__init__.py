"""What sparse attention costs in loss, and where heads attend."""
