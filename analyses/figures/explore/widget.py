"""The live page in a notebook: anywidget carries commands to the kernel and replies back."""

from typing import Any

import anywidget
import traitlets

from sparselens.analyses.figures.explore.page import script, style


class ExploreWidget(anywidget.AnyWidget):
    """The live page of an exploration."""

    _esm = script("export default { render: startWidget };")
    _css = style()
    data = traitlets.Dict().tag(sync=True)  # the initial content of the page

    def __init__(self, explored: Any) -> None:
        self._explored = explored
        super().__init__(data={"title": explored.title, "state": explored.state, "view": {}, "note": ""})
        self.on_msg(self._heard)

    def _heard(self, _: Any, message: Any, __: Any) -> None:
        try:
            reply = self._explored.obey(message["command"])
        except Exception as error:  # otherwise it would only appear in the kernel's log
            self.send({"id": message.get("id"), "error": f"{type(error).__name__}: {error}"})
            raise
        self.send({"id": message["id"], **reply})
