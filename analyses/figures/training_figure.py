"""One figure of a post-training run: did the loss come back to its target, and which edges went when?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparselens.analyses.figures.paper import Drawing
from sparselens.training.result import PostTrainResult

History = Sequence[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class TrainingFigure(Drawing):
    """A drawing of a run; see `training_figure`."""

    history: History = field(repr=False)
    step: int | None = None  # of the state that the run returned

    def draw(self, width: float = 6.75) -> Any:
        """The matplotlib Figure."""
        from sparselens.analyses.figures.training_drawing import draw_training

        return draw_training(self.history, self.step, width)


def training_figure(run: PostTrainResult | History) -> TrainingFigure:
    """Draw a run from its records: loss, open edges, multiplier, gate bias, learning rate, open edges layer by layer.

    Panels of numbers that the records do not hold are left out.

    >>> training_figure(result).save("training.pdf")

    Args:
        run: what `post_train` returned, its `history`, or the evaluations in its `log.jsonl`

    Raises:
        ValueError: there is no record, or none that holds a loss and a step.
    """
    history = run.history if isinstance(run, PostTrainResult) else list(run)
    if not history or not all({"step", "loss"} <= record.keys() for record in history):
        raise ValueError(f"{len(history)} records: want one or more, each with a step and a loss, as in result.history")
    return TrainingFigure(tuple(history), run.step if isinstance(run, PostTrainResult) else None)


def live_training_figure() -> Callable[[list[dict[str, Any]]], None]:
    """For `post_train(..., on_evaluation=...)` in a notebook: one drawing that follows the run, in place.

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
