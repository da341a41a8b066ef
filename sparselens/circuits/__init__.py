"""The graph of a model's nodes and edges, and the circuits selected from it."""
