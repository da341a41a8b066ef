"""How a model is read, run in parts, differentiated and resumed: what all analyses stand on."""
