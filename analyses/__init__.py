"""What is asked of a (dense, sparse) pair of models, and how the answers are drawn.

These imports are light: models come in as arguments, what needs torch is looked up when first used, and matplotlib is
loaded when something is drawn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparselens.analyses.attribution.attention_edges import AttentionEdges, attention_edges
from sparselens.analyses.figures.token_view import TokenView, token_view

if TYPE_CHECKING:  # the same names as in _HOMES, for type checkers and completion
    from sparselens.analyses.attribution.edge_scores import EdgeScores as EdgeScores
    from sparselens.analyses.attribution.edges import attribute_edge_positions as attribute_edge_positions
    from sparselens.analyses.attribution.edges import attribute_edges as attribute_edges
    from sparselens.analyses.attribution.exact import patch_edges as patch_edges
    from sparselens.analyses.attribution.nodes import AttentionEdgeScores as AttentionEdgeScores
    from sparselens.analyses.attribution.nodes import NodeScores as NodeScores
    from sparselens.analyses.attribution.nodes import attribute_attention_edges as attribute_attention_edges
    from sparselens.analyses.attribution.nodes import attribute_nodes as attribute_nodes
    from sparselens.analyses.circuits.baselines import random_circuit as random_circuit
    from sparselens.analyses.circuits.baselines import score_by_magnitude as score_by_magnitude
    from sparselens.analyses.circuits.cones import DependencyCone as DependencyCone
    from sparselens.analyses.circuits.cones import cut_effects as cut_effects
    from sparselens.analyses.circuits.cones import dependency_cone as dependency_cone
    from sparselens.analyses.circuits.cones import outside_effect as outside_effect
    from sparselens.analyses.circuits.faithfulness import Curve as Curve
    from sparselens.analyses.circuits.faithfulness import Faithfulness as Faithfulness
    from sparselens.analyses.circuits.faithfulness import completeness as completeness
    from sparselens.analyses.circuits.faithfulness import faithfulness as faithfulness
    from sparselens.analyses.circuits.faithfulness import faithfulness_curve as faithfulness_curve
    from sparselens.analyses.circuits.faithfulness import minimality as minimality
    from sparselens.analyses.circuits.search import faithful_circuit as faithful_circuit
    from sparselens.analyses.circuits.stability import ShareCurves as ShareCurves
    from sparselens.analyses.circuits.stability import Stability as Stability
    from sparselens.analyses.circuits.stability import edges_needed as edges_needed
    from sparselens.analyses.circuits.stability import share_curves as share_curves
    from sparselens.analyses.circuits.stability import stability as stability
    from sparselens.analyses.comparison.comparing import compare as compare
    from sparselens.analyses.comparison.files import load_comparison as load_comparison
    from sparselens.analyses.comparison.plots import edges_needed_plot as edges_needed_plot
    from sparselens.analyses.comparison.plots import kept_plot as kept_plot
    from sparselens.analyses.comparison.plots import loss_plot as loss_plot
    from sparselens.analyses.comparison.results import Comparison as Comparison
    from sparselens.analyses.figures.explore.session import Exploration as Exploration
    from sparselens.analyses.figures.explore.session import explore as explore
    from sparselens.analyses.figures.heat_maps import heat_map as heat_map
    from sparselens.analyses.figures.pattern_drawing import pattern_figure as pattern_figure
    from sparselens.analyses.figures.pattern_view import head_pattern as head_pattern
    from sparselens.analyses.figures.plot import Plot as Plot
    from sparselens.analyses.figures.plot import Series as Series
    from sparselens.analyses.figures.plot_drawing import save_plots as save_plots
    from sparselens.analyses.figures.training_figure import TrainingFigure as TrainingFigure
    from sparselens.analyses.figures.training_figure import live_training_figure as live_training_figure
    from sparselens.analyses.figures.training_figure import training_figure as training_figure
    from sparselens.analyses.figures.viewer import Viewer as Viewer
    from sparselens.analyses.figures.viewer import circuit_viewer as circuit_viewer
    from sparselens.analyses.patching.activation_patching import Patched as Patched
    from sparselens.analyses.patching.activation_patching import patch_activations as patch_activations
    from sparselens.analyses.patching.activation_patching import patch_heads as patch_heads
    from sparselens.analyses.patching.top_components import Kept as Kept
    from sparselens.analyses.patching.top_components import keep_top as keep_top
    from sparselens.analyses.sparsity.head_labels import HeadScores as HeadScores
    from sparselens.analyses.sparsity.head_labels import label_heads as label_heads
    from sparselens.analyses.sparsity.loss_curve import LossPoint as LossPoint
    from sparselens.analyses.sparsity.loss_curve import loss_points as loss_points
    from sparselens.analyses.sparsity.loss_curve import measure_loss as measure_loss
    from sparselens.analyses.sparsity.top_k import top_k_attention as top_k_attention

__all__ = ["AttentionEdges", "TokenView", "attention_edges", "token_view"]

_HOMES = {
    "attribution.edge_scores": ("EdgeScores",),
    "attribution.edges": ("attribute_edge_positions", "attribute_edges"),
    "attribution.exact": ("patch_edges",),
    "attribution.nodes": ("AttentionEdgeScores", "NodeScores", "attribute_attention_edges", "attribute_nodes"),
    "circuits.baselines": ("random_circuit", "score_by_magnitude"),
    "circuits.cones": ("DependencyCone", "cut_effects", "dependency_cone", "outside_effect"),
    "circuits.faithfulness": (
        "Curve",
        "Faithfulness",
        "completeness",
        "faithfulness",
        "faithfulness_curve",
        "minimality",
    ),
    "circuits.search": ("faithful_circuit",),
    "circuits.stability": ("ShareCurves", "Stability", "edges_needed", "share_curves", "stability"),
    "comparison.comparing": ("compare",),
    "comparison.files": ("load_comparison",),
    "comparison.plots": ("edges_needed_plot", "kept_plot", "loss_plot"),
    "comparison.results": ("Comparison",),
    "figures.explore.session": ("Exploration", "explore"),
    "figures.heat_maps": ("heat_map",),
    "figures.pattern_drawing": ("pattern_figure",),
    "figures.pattern_view": ("head_pattern",),
    "figures.plot": ("Plot", "Series"),
    "figures.plot_drawing": ("save_plots",),
    "figures.training_figure": ("TrainingFigure", "live_training_figure", "training_figure"),
    "figures.viewer": ("Viewer", "circuit_viewer"),
    "patching.activation_patching": ("Patched", "patch_activations", "patch_heads"),
    "patching.top_components": ("Kept", "keep_top"),
    "sparsity.head_labels": ("HeadScores", "label_heads"),
    "sparsity.loss_curve": ("LossPoint", "loss_points", "measure_loss"),
    "sparsity.top_k": ("top_k_attention",),
}
_HOME_OF = {name: f"sparselens.analyses.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the module in which a public name lives, and keep what was found."""
    if name not in _HOME_OF:
        known = ", ".join(sorted({*__all__, *_HOME_OF}))
        raise AttributeError(f"module 'sparselens.analyses' has no attribute {name!r}; it has {known}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
