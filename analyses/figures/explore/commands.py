"""Runs the commands that pages send to an exploration; a command is untrusted JSON."""

from typing import TYPE_CHECKING, Any

from sparselens.analyses.figures.explore.steps import names_in, text_in

if TYPE_CHECKING:
    from sparselens.analyses.figures.explore.session import Exploration

MATRIX = 7  # rows and columns of the table that explains an edge


def run_command(explored: "Exploration", command: Any) -> dict[str, Any]:
    """Run a page's command; returns the reply.

    Raises:
        ValueError: there is no such command, or it fails.
    """
    actions = {
        "ask": (explored.ask, ("prompt",)),
        "cut": (lambda names: _toggle(explored, names), ("names",)),
        "restore": (explored.restore, ()),
        "note": (explored.note, ("name", "label", "group", "pinned")),
        "why": (lambda name: _why(explored, name), ("name",)),
        "undo": (explored.undo, ()),
        "redo": (explored.redo, ()),
        "load": (lambda shared: _load(explored, shared), ("shared",)),
        "page": (explored.page, ("view",)),
    }
    if not isinstance(command, dict) or command.get("do") not in actions:
        raise ValueError(f"no such command: {command!r:.200} (want do = {', '.join(actions)})")
    action, wanted = actions[command["do"]]
    if set(command) != {"do", *wanted}:
        raise ValueError(f"{command['do']} takes {', '.join(wanted) or 'nothing'}, not {sorted(command)}")
    said: Any = action(**{name: command[name] for name in wanted})
    if isinstance(said, list):
        return {"why": said}
    return {"page": said} if isinstance(said, str) else {"state": explored.state}


def _toggle(explored: "Exploration", names: Any) -> None:
    """Cut the parts, or restore them if all of them are already cut."""
    wanted = names_in(names)
    whole_cut = wanted and set(wanted) <= set(explored.step.cuts)
    (explored.restore if whole_cut else explored.cut)(*wanted)


def _why(explored: "Exploration", name: Any) -> list[dict[str, Any]]:
    """The explanation of an edge: for each model a sentence and a small table."""
    said: list[dict[str, Any]] = []
    for model, found in explored.why(text_in("name", name)).items():
        rows, columns, values = found.folded(MATRIX)
        numbers = [[round(value, 3) for value in row] for row in values.tolist()]
        said.append({"model": model, "sentence": str(found), "rows": rows, "columns": columns, "values": numbers})
    return said


def _load(explored: "Exploration", shared: Any) -> None:
    if not isinstance(shared, dict):  # a string would be a path, and pages may not open files
        raise ValueError("this is not the state of an exploration: want a JSON object")
    explored.load(shared)
