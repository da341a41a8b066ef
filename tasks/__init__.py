"""What models are asked to do: one task per file, strings and labels only."""
