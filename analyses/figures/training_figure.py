"""The figure of a post-training run: whether the loss returned to its target, and when which edges were removed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparselens.analyses.figures.paper import Drawing
from sparselens.training.result import PostTrainResult

History = Sequence[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class TrainingFigure(Drawing):
    """The figure of a run; see `training_figure`."""

    history: History = field(repr=False)
    step: int | None = None  # step of the state that the run returned

    def draw(self, width: float = 6.75) -> Any:
        """The matplotlib Figure."""
        from sparselens.analyses.figures.training_drawing import draw_training

        return draw_training(self.history, self.step, width)


def training_figure(run: PostTrainResult | History) -> TrainingFigure:
    """Draw a run from its records: loss, open edges, multiplier, gate bias, learning rate, and open edges per layer.

    Panels whose numbers are missing in the records are left out.

    >>> training_figure(result).save("training.pdf")

    Args:
        run: the result of `post_train`, its `history`, or the evaluations in its `log.jsonl`

    Raises:
        ValueError: there are no records, or one has no loss or no step.
    """
    history = run.history if isinstance(run, PostTrainResult) else list(run)
    if not history or not all({"step", "loss"} <= record.keys() for record in history):
        raise ValueError(f"{len(history)} records: want one or more, each with a step and a loss, as in result.history")
    return TrainingFigure(tuple(history), run.step if isinstance(run, PostTrainResult) else None)


def live_training_figure() -> Callable[[list[dict[str, Any]]], None]:
    """A callback for `post_train(..., on_evaluation=...)` in a notebook: one figure, updated in place during the run.

    >>> post_train(model, batches, held_out=held_out, on_evaluation=live_training_figure())
    """
    from IPython.display import display

    handle: Any = None

    def show(history: list[dict[str, Any]]) -> None:
        nonlocal handle
        figure = training_figure(history)
        if handle is None:
            handle = display(figure, display_id=True)
        else:
            handle.update(figure)

    return show
