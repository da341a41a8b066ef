"""Run the notebooks and store what they show, so that GitHub and the documentation show it too: `make notebooks`.

    python .ci/notebooks.py [NOTEBOOK ...]

What is stored is text, tables and pictures. Interactive pages are stored as the still picture under them, plotly's
figures as Chromium draws them: neither GitHub nor an offline reader runs scripts.
"""

import base64
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WIDTH, COLOURS = 1200, 64  # of stored pictures
STYLED = re.compile("T_[0-9a-f]{5}")  # pandas' random names of styled tables, which would differ in every run
STILL = re.compile(r'<img [^>]*src="data:image/png;base64,([^"]+)"')


def main() -> None:
    named = [Path(name) for name in sys.argv[1:]]
    for path in named or sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        NotebookClient(
            notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": path.parent}}
        ).execute()
        nbformat.write(slim(notebook), path)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


def slim(notebook: Any) -> Any:
    """The notebook with outputs that can be shown without a script, and without traces of when and where it ran."""
    notebook.metadata.pop("widgets", None)
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = joined([shown for output in cell.outputs if (shown := stored(output)) is not None])
            for place, output in enumerate(cell.outputs):
                if page := output.get("data", {}).get("text/html"):
                    output.data["text/html"] = STYLED.sub(f"T_{number}_{place}", page)
    return notebook


def joined(outputs: list[Any]) -> list[Any]:
    """Pieces of one stream, printed at different moments, as one."""
    kept: list[Any] = []
    for output in outputs:
        if kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def stored(output: Any) -> Any:
    """The output as it is stored; None for what only a script can show."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    if output.output_type == "error":
        raise SystemExit(f"{output.ename}: {output.evalue}")
    data, page = output.data, output.data.get("text/html", "")
    if plot := data.get("application/vnd.plotly.v1+json"):
        data = {"image/png": small(drawn_by_chromium(plot))}
    elif "<script" in page and "<iframe" not in page:
        return None  # plotly's own library
    elif "<iframe" in page:
        found = STILL.search(page)
        data = {"image/png": small(base64.b64decode(found[1]))} if found else {}
    elif "image/png" in data:
        data = {"image/png": small(base64.b64decode(data["image/png"]))}
    else:
        data.pop("text/plain", None) if "text/html" in data or "text/markdown" in data else None
    output.data, output.metadata = data, {}
    return output if data else None


def small(picture: bytes) -> str:
    """A PNG in base64, no wider than a reader's screen."""
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    if paper.width > WIDTH:
        paper = paper.resize((WIDTH, round(paper.height * WIDTH / paper.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    paper.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def drawn_by_chromium(plot: Any) -> bytes:
    """A picture of a plotly figure."""
    import plotly.graph_objects as go

    figure = go.Figure(plot["data"], plot["layout"])
    width, height = figure.layout.width or 700, figure.layout.height or 450
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder) / "plot.html", Path(folder) / "plot.png"
        figure.write_html(
            page, include_plotlyjs=True, default_width=width, default_height=height, config={"displayModeBar": False}
        )
        size = f"--window-size={int(width) + 20},{int(height) + 20}"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"]
        command = ["chromium", *flags, size, f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return picture.read_bytes()


if __name__ == "__main__":
    main()
