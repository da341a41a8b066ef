"""How much each edge, node and attention edge of a model matters for a metric."""
