"""An exploration: a prompt, cut parts and notes on parts, with the models' results.

Every change is a step that can be undone; a step that fails changes nothing. This module is independent of the web:
pages send commands to `obey` and draw the replies.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from sparselens.analyses.attribution.qk_attribution import QKAttribution
from sparselens.analyses.figures.explore.commands import run_command
from sparselens.analyses.figures.explore.models import Models
from sparselens.analyses.figures.explore.page import framed, recorded_page
from sparselens.analyses.figures.explore.steps import Note, Step, step_of, text_in
from sparselens.analyses.figures.page import write_page
from sparselens.analyses.figures.token_layout import printable
from sparselens.analyses.patching.cuts import read_cut
from sparselens.files.reading import strict_json
from sparselens.files.whole import write_json
from sparselens.gates.hooked import is_hooked, refuse_lost_gates
from sparselens.gates.surgery import is_sparse
from sparselens.models.hooked_model import HookedModel
from sparselens.models.provenance import origin, without_path


class Exploration:
    """One or two models and a prompt in which parts can be cut; see `explore`. Notebooks display it as a live page.

    Names of parts are as in `sparselens.analyses.patching.cuts`: `a0.h1:3->7` is an attention edge from position 3 to
    7, `a0.h1` a head, `a0` a layer's attention, `m0` an MLP, `p3` a token.
    """

    def __init__(self, models: Mapping[str, Any], title: str) -> None:
        self.title = title
        self._models = Models(models)
        self._lock = threading.RLock()
        self._steps, self._at = [Step()], 0
        self._data = self._models.read("", ())
        self._milliseconds = 0.0

    # -- state

    @property
    def step(self) -> Step:
        """The current prompt, cuts and notes."""
        return self._steps[self._at]

    @property
    def state(self) -> dict[str, Any]:
        """Everything that a page draws, as plain data."""
        with self._lock:
            return {
                **self.step.plain,
                "tokens": [printable(token) for token in self._models.tokens(self.step.prompt)],
                "can": {"undo": self._at > 0, "redo": self._at + 1 < len(self._steps)},
                "milliseconds": self._milliseconds,
                "models": self._data,
            }

    @property
    def shared(self) -> dict[str, Any]:
        """The current step as plain data, which `load` reads."""
        return {**self.step.plain, "models": [model["name"] for model in self._data]}

    # -- actions

    def ask(self, prompt: Any) -> None:
        """Run another prompt. Heads and MLPs stay cut; edges and tokens, which belong to the old prompt, do not.

        Raises:
            ValueError: the prompt is empty or too long, or the tokenizer cannot represent it.
        """
        if not text_in("prompt", prompt).strip():
            raise ValueError("the prompt is empty: type some text")
        with self._lock:
            stay = [name for name in (*self.step.cuts, *self.step.notes) if not read_cut(name).at_position]
            notes = {name: note for name, note in self.step.notes.items() if name in stay}
            self._go(Step(prompt, tuple(name for name in self.step.cuts if name in stay), notes))

    def cut(self, *names: str) -> None:
        """Cut parts.

        Raises:
            ValueError: there is no such part, or it cannot be cut.
        """
        with self._lock:
            self._go(replace(self.step, cuts=tuple(dict.fromkeys((*self.step.cuts, *names)))))

    def restore(self, *names: str) -> None:
        """Restore parts that are cut; without names, all of them."""
        with self._lock:
            left = tuple(name for name in self.step.cuts if names and name not in names)
            self._go(replace(self.step, cuts=left))

    def note(self, name: str, label: Any = "", group: Any = "", pinned: Any = True) -> None:
        """Give a part a label or a group, or pin it to the list of parts; without any of these, remove its note.

        Raises:
            ValueError: there is no such part.
        """
        note = Note(text_in("label", label), text_in("group", group), bool(pinned))
        with self._lock:
            notes = {other: said for other, said in self.step.notes.items() if other != name}
            self._go(replace(self.step, notes=notes if note == Note() else {**notes, name: note}))

    def why(self, edge: str) -> dict[str, QKAttribution]:
        """Why an attention edge is open or closed, in each model, with the current cuts; see `explain_edge`.

        A cut edge is explained as if it were not cut, since its score is computed before the gate. In a sparse model
        the output of a head is split into its attention edges, which can be explained in turn.

        >>> print(found.why("a2.h3:1->8")["sparse"])

        Raises:
            ValueError: there is no such edge, or a model's edges cannot be explained.
        """
        with self._lock:
            return self._models.explain(self.step.prompt, self.step.cuts, edge)

    def undo(self) -> None:
        """Go back by one step.

        Raises:
            ValueError: there is nothing to undo.
        """
        self._move(-1)

    def redo(self) -> None:
        """Redo the step that was undone last.

        Raises:
            ValueError: there is nothing to redo.
        """
        self._move(1)

    def save(self, path: str | Path) -> Path:
        """Write prompt, cuts and notes as JSON, for `load` and for Import on the page."""
        return write_json(Path(path), self.shared)

    def load(self, shared: str | Path | Mapping[str, Any]) -> None:
        """Set prompt, cuts and notes from a file or from another exploration's `shared`.

        Raises:
            ValueError: the data has another form, or names parts that these models do not have.
        """
        given = shared if isinstance(shared, Mapping) else strict_json(Path(shared).read_bytes())
        with self._lock:
            self._go(step_of(given))

    def save_html(self, path: str | Path) -> Path:
        """Write the current state as one recorded page, which needs no network and cannot run the models."""
        return write_page(path, self.page)

    def page(self, view: Any = None, note: str = "") -> str:
        """The HTML of the recorded page.

        Args:
            view: display settings of a live page: position, head and thresholds
            note: a line shown above the page
        """
        return recorded_page(self.title, self.state, view if isinstance(view, dict) else {}, note)

    def widget(self) -> Any:
        """The live page as a notebook widget.

        Raises:
            ImportError: anywidget is not installed.
        """
        try:
            from sparselens.analyses.figures.explore.widget import ExploreWidget
        except ImportError as error:
            raise ImportError(
                "the live page needs anywidget (pip install 'sparselens[notebook]'); or run `sparselens explore`"
            ) from error
        return ExploreWidget(self)

    def obey(self, command: Any) -> dict[str, Any]:
        """Run a page's command and return the reply; {"error": message} if it fails with a ValueError."""
        try:
            with self._lock:
                return run_command(cast(Any, self), command)  # type checkers see this class under two module names
        except ValueError as error:
            return {"error": str(error)}

    def __repr__(self) -> str:
        return f"Exploration({self.title!r}, {self.step.prompt!r}, cuts={list(self.step.cuts)})"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The live page if possible, and the recorded one for notebooks without a kernel."""
        try:
            live, note = self.widget()._repr_mimebundle_()[0], ""
        except ImportError as error:
            live, note = {}, str(error)
        return {**live, "text/html": framed(self.page(note=note)), "text/plain": repr(self)}

    # -- implementation

    def _move(self, by: int) -> None:
        with self._lock:
            there = self._at + by
            if not 0 <= there < len(self._steps):
                raise ValueError("there is nothing to undo" if by < 0 else "there is nothing to redo")
            self._show(self._steps[there])
            self._at = there

    def _go(self, step: Step) -> None:
        """Add a step to the history, unless nothing changes."""
        if step == self.step:
            return
        self._show(step)
        self._steps, self._at = [*self._steps[: self._at + 1], step], self._at + 1

    def _show(self, step: Step) -> None:
        """Run the models for a step and store their results."""
        started = time.perf_counter()
        tokens = self._models.tokens(step.prompt)
        self._models.refuse_unknown((*step.cuts, *step.notes), len(tokens))
        if (step.prompt, step.cuts) != (self.step.prompt, self.step.cuts):  # otherwise only notes have changed
            self._data = self._models.read(step.prompt, step.cuts)
            self._milliseconds = round(1000 * (time.perf_counter() - started), 1)


def explore(model: HookedModel, dense: HookedModel | None = None, prompt: str = "", *, title: str = "") -> Exploration:
    """Cut attention edges, heads, MLPs or tokens of a model with a click, and see how its predictions change.

    A checkbox on the page keeps only the edges that lead to the chosen answer: its circuit with attention patterns held
    fixed (`dependency_cone`). As the last expression of a notebook cell the exploration is displayed; the page is live
    if anywidget is installed (`pip install 'sparselens[notebook]'`). `sparselens explore` shows it in a browser.

    >>> found = analyses.explore(sl.load("stories260k-sparse"), prompt="Lily saw a big dog. She was")
    >>> found.cut("a2.h3", "p4")
    >>> found.state["models"][0]["answers"][-1]["top"]  # tokens with their probabilities, before and after

    Args:
        model: TransformerBridge or HookedTransformer, sparse or dense, in evaluation mode
        dense: a second model with the same tokenizer, shown above the first; cuts apply to both
        prompt: the prompt to start with; it can also be typed into the page
        title: title of the page; default: the model's name

    Raises:
        ValueError: a model cannot be explored, or the prompt is too long or cannot be tokenized.
    """
    for given in (model,) if dense is None else (dense, model):
        _refuse_foreign(given)
    network, other = cast(tuple[Any, Any], (model, dense))
    if other is not None and is_sparse(other) and not is_sparse(network):
        raise ValueError("the dense model has gates and the other one has none: swap them, explore(sparse, dense)")
    kind = "sparse" if is_sparse(network) else "model"
    models = {kind: network} if other is None else {"dense": other, kind: network}
    found = Exploration(models, title or without_path(origin(network)) or kind)
    if prompt:
        found.ask(prompt)
    return found


def _refuse_foreign(model: Any) -> None:
    if isinstance(model, (str, Path)):
        raise ValueError(f"explore wants a loaded model, not its name: pass sparselens.load({str(model)!r})")
    if not is_hooked(model):
        raise ValueError(
            f"explore wants a TransformerBridge or HookedTransformer, not a {type(model).__name__}: pass "
            "sparselens.load(folder), or TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer)"
        )
    refuse_lost_gates(model)
    if getattr(model, "tokenizer", None) is None:
        raise ValueError("this model has no tokenizer: set model.tokenizer")
