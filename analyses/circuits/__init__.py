"""What some edges do alone, which are enough, and what an answer can depend on."""
