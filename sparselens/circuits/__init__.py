"""The graph of a model's nodes and edges, and circuits selected from it."""
