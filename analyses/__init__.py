"""What is asked of a (dense, sparse) pair of models, and how the answers are drawn.

These imports are light: models come in as arguments, and matplotlib is loaded when something is drawn.
"""

from sparselens.analyses.attention_edges import AttentionEdges, attention_edges
from sparselens.analyses.token_view import TokenView, token_view

__all__ = ["AttentionEdges", "TokenView", "attention_edges", "token_view"]
