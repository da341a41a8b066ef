"""Hard 0/1 gates on every attention edge: the maths, how gates enter a model, and statistics of what they did."""
