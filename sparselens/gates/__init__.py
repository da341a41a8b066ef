"""A hard 0/1 gate on every attention edge of a model: the maths, both ways into a model, and what the gates did."""
