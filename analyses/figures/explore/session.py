"""What is explored: a prompt, what is cut in it, what its parts are called; and what the models answer then.

Every change is a step, which can be undone. A step that fails changes nothing. No web in here: pages send commands
(`obey`) and draw what comes back.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from sparselens.analyses.attribution.qk_attribution import QKAttribution
from sparselens.analyses.figures.explore.commands import obeyed
from sparselens.analyses.figures.explore.models import Models
from sparselens.analyses.figures.explore.page import framed, recorded_page
from sparselens.analyses.figures.explore.steps import Note, Step, step_of, text_in
from sparselens.analyses.figures.token_layout import printable
from sparselens.analyses.patching.cuts import read_cut
from sparselens.files.reading import strict_json
from sparselens.files.whole import write_file, write_json
from sparselens.gates.hooked import is_hooked, refuse_lost_gates
from sparselens.gates.surgery import is_sparse
from sparselens.models.hooked_model import HookedModel
from sparselens.models.provenance import origin, without_path


class Exploration:
    """One or two models, and a prompt in which parts can be cut; see `explore`. In a notebook it shows itself.

    Names of parts are those of `sparselens.analyses.patching.cuts`: `a0.h1:3->7` an attention edge from position 3 to
    7, `a0.h1` a head, `a0` a layer's attention, `m0` an MLP, `p3` a token.
    """

    def __init__(self, models: Mapping[str, Any], title: str) -> None:
        self.title = title
        self._models = Models(models)
        self._lock = threading.RLock()
        self._steps, self._at = [Step()], 0
        self._data = self._models.read("", ())
        self._milliseconds = 0.0

    # -- what there is

    @property
    def step(self) -> Step:
        """The prompt, the cuts and the notes as they are now."""
        return self._steps[self._at]

    @property
    def state(self) -> dict[str, Any]:
        """All that a page draws, as plain data."""
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
        """The step as plain data, for others to `load`."""
        return {**self.step.plain, "models": [model["name"] for model in self._data]}

    # -- what can be done

    def ask(self, prompt: Any) -> None:
        """Run another prompt. Cut heads and MLPs stay cut; edges and tokens, which are of the old prompt, do not.

        Raises:
            ValueError: the prompt is empty, too long, or holds what is unknown to the tokenizer.
        """
        if not text_in("prompt", prompt).strip():
            raise ValueError("the prompt is empty: type some text")
        with self._lock:
            stay = [name for name in (*self.step.cuts, *self.step.notes) if not read_cut(name).at_position]
            notes = {name: note for name, note in self.step.notes.items() if name in stay}
            self._go(Step(prompt, tuple(name for name in self.step.cuts if name in stay), notes))

    def cut(self, *names: str) -> None:
        """Take parts out.

        Raises:
            ValueError: there is no such part, or it cannot be cut.
        """
        with self._lock:
            self._go(replace(self.step, cuts=tuple(dict.fromkeys((*self.step.cuts, *names)))))

    def restore(self, *names: str) -> None:
        """Put parts back that were cut; without names, all of them."""
        with self._lock:
            left = tuple(name for name in self.step.cuts if names and name not in names)
            self._go(replace(self.step, cuts=left))

    def note(self, name: str, label: Any = "", group: Any = "", pinned: Any = True) -> None:
        """Name a part, put it into a group, pin it to the list of parts. With none of the three the note goes.

        Raises:
            ValueError: there is no such part.
        """
        note = Note(text_in("label", label), text_in("group", group), bool(pinned))
        with self._lock:
            notes = {other: said for other, said in self.step.notes.items() if other != name}
            self._go(replace(self.step, notes=notes if note == Note() else {**notes, name: note}))

    def why(self, edge: str) -> dict[str, QKAttribution]:
        """Why an attention edge is open or closed, in each model, with all that is cut now; see `explain_edge`.

        An edge that is cut is explained as if it were not: scores come before gates. In a sparse model what a head
        wrote is split into its attention edges, which can be asked about in turn.

        >>> print(found.why("a2.h3:1->8")["sparse"])

        Raises:
            ValueError: there is no such edge, or a model is one whose edges cannot be explained.
        """
        with self._lock:
            return self._models.explain(self.step.prompt, self.step.cuts, edge)

    def undo(self) -> None:
        """Go back by one step.

        Raises:
            ValueError: there is none.
        """
        self._move(-1)

    def redo(self) -> None:
        """Do again what was undone.

        Raises:
            ValueError: nothing was undone.
        """
        self._move(1)

    def save(self, path: str | Path) -> Path:
        """Write prompt, cuts and notes as JSON, which `load` and the page's import read."""
        return write_json(Path(path), self.shared)

    def load(self, shared: str | Path | Mapping[str, Any]) -> None:
        """Take over prompt, cuts and notes, from a file or as `shared` gives them.

        Raises:
            ValueError: it is not such a state, or names parts that these models do not have.
        """
        given = shared if isinstance(shared, Mapping) else strict_json(Path(shared).read_bytes())
        with self._lock:
            self._go(step_of(given))

    def save_html(self, path: str | Path) -> Path:
        """Write what is shown as one page that asks the network for nothing. There nothing can be cut any more."""
        return write_file(Path(path), self.page().encode())

    def page(self, view: Any = None, note: str = "") -> str:
        """The recorded page as text.

        Args:
            view: what a live page shows: its position, head and thresholds
            note: a line above it
        """
        return recorded_page(self.title, self.state, view if isinstance(view, dict) else {}, note)

    def widget(self) -> Any:
        """The live page for a notebook.

        Raises:
            ImportError: anywidget, which carries the clicks, is not installed.
        """
        try:
            from sparselens.analyses.figures.explore.widget import ExploreWidget
        except ImportError as error:
            raise ImportError(
                "a live notebook page needs anywidget (pip install 'sparselens[notebook]'); or run `sparselens explore`"
            ) from error
        return ExploreWidget(self)

    def obey(self, command: Any) -> dict[str, Any]:
        """Do what a page asks for and answer with what it draws. A mistake is an answer, too: {"error": why}."""
        try:
            with self._lock:
                return obeyed(cast(Any, self), command)  # type checkers meet this class under two names
        except ValueError as error:
            return {"error": str(error)}

    def __repr__(self) -> str:
        return f"Exploration({self.title!r}, {self.step.prompt!r}, cuts={list(self.step.cuts)})"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The live page where it can be, over the recorded one, which shows once the kernel is gone."""
        try:
            live, note = self.widget()._repr_mimebundle_()[0], ""
        except ImportError as error:
            live, note = {}, str(error)
        return {**live, "text/html": framed(self.page(note=note)), "text/plain": repr(self)}

    # -- how it is done

    def _move(self, by: int) -> None:
        with self._lock:
            there = self._at + by
            if not 0 <= there < len(self._steps):
                raise ValueError("there is nothing to undo" if by < 0 else "there is nothing to do again")
            self._show(self._steps[there])
            self._at = there

    def _go(self, step: Step) -> None:
        """A new step, unless it is the same or fails."""
        if step == self.step:
            return
        self._show(step)
        self._steps, self._at = [*self._steps[: self._at + 1], step], self._at + 1

    def _show(self, step: Step) -> None:
        """Run the models as the step says, and keep what they do."""
        started = time.perf_counter()
        tokens = self._models.tokens(step.prompt)
        self._models.refuse_unknown((*step.cuts, *step.notes), len(tokens))
        if (step.prompt, step.cuts) != (self.step.prompt, self.step.cuts):  # else only a note is new
            self._data = self._models.read(step.prompt, step.cuts)
            self._milliseconds = round(1000 * (time.perf_counter() - started), 1)


def explore(model: HookedModel, dense: HookedModel | None = None, prompt: str = "", *, title: str = "") -> Exploration:
    """Cut attention edges, heads, MLPs or tokens of a model with a click, and watch what it predicts.

    A tick on the page leaves the edges that lead to the chosen answer, its circuit with the patterns held
    (`dependency_cone`). The last expression of a notebook cell shows it; there it is live where anywidget is installed
    (`pip install 'sparselens[notebook]'`). `sparselens explore` shows the same in a browser.

    >>> found = analyses.explore(sl.load("stories260k-sparse"), prompt="Lily saw a big dog. She was")
    >>> found.cut("a2.h3", "p4")
    >>> found.state["models"][0]["answers"][-1]["top"]  # tokens with their probabilities, before and after

    Args:
        model: TransformerBridge or HookedTransformer, sparse or dense, in evaluation mode
        dense: a second model with the same tokenizer, shown above; what is cut is cut in both
        prompt: can also be typed into the page

    Raises:
        ValueError: a model is none that can be explored, or the prompt does not fit.
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
        raise ValueError(f"explore wants an open model, not its name: pass sparselens.load({str(model)!r})")
    if not is_hooked(model):
        raise ValueError(
            f"explore wants a TransformerBridge or HookedTransformer, not a {type(model).__name__}: pass "
            "sparselens.load(folder), or TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer)"
        )
    refuse_lost_gates(model)
    if getattr(model, "tokenizer", None) is None:
        raise ValueError("this model has no tokenizer to read prompts with: set model.tokenizer")
