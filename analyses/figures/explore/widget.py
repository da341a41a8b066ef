"""The page inside a notebook: anywidget carries what is clicked to the kernel and the answer back."""

from typing import Any

import anywidget
import traitlets

from sparselens.analyses.figures.explore.page import script, style


class ExploreWidget(anywidget.AnyWidget):
    """An exploration, live."""

    _esm = script("export default { render: startWidget };")
    _css = style()
    data = traitlets.Dict().tag(sync=True)  # what the page is drawn from first

    def __init__(self, explored: Any) -> None:
        self._explored = explored
        super().__init__(data={"title": explored.title, "state": explored.state, "view": {}, "note": ""})
        self.on_msg(self._heard)

    def _heard(self, _: Any, message: Any, __: Any) -> None:
        try:
            reply = self._explored.obey(message["command"])
        except Exception as error:  # would end in the kernel's log, where nobody looks
            self.send({"id": message.get("id"), "error": f"{type(error).__name__}: {error}"})
            raise
        self.send({"id": message["id"], **reply})
