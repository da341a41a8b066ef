"""What sparse attention costs in loss, and what heads attend to."""
