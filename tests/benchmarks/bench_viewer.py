"""How long the circuit viewer's page takes in headless Chromium, and how large it is. Not collected by pytest.

    python -m tests.benchmarks.bench_viewer

Model: 12 layers of 12 heads with random scores (32,491 edges), patterns of one prompt of 15 tokens, in both models; the
page holds 3,000 or 11,000 edges of each, or 3,000 dense and 60 sparse. Times are milliseconds of `performance.now()`
without a GPU, the least and the median of 15; each reads a pixel of both canvases, so that what was asked for is drawn.
The first drawing is counted from the start of the last script, with all edges that the page holds.
"""

import json
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from urllib.parse import unquote

from sparselens.analyses import circuit_viewer
from tests.analyses.figures.test_viewer import CHROMIUM, attention_of, scores_of

MEASURE = """
const flushed = () => panels.slice(0, 2).map(({ canvas }) => canvas.getContext("2d").getImageData(0, 0, 1, 1));
const started = performance.now();
flushed();
const said = { "first drawing": [times.draw + performance.now() - started] };
function measure(name, act) {
  const taken = [];
  for (let i = 0; i < 16; i++) {
    const start = performance.now();
    act(i);
    flushed();
    taken.push(performance.now() - start);
  }
  said[name] = taken.slice(1).sort((a, b) => a - b);
}
const node = nodeOf.get("a5.h5"), many = models[0].list.length;
state.mode = "top";
measure("new threshold, all but a few edges", i => { state.top = many - i; refresh(); });
const first = panels.shift();
measure("the same in one panel", i => { state.top = many - i; refresh(); });
panels.unshift(first);
measure("new threshold, 300 edges", i => { state.top = 300 + i; refresh(); });
state.top = many; refresh();
measure("point at a node", i => point(i % 2 ? { node } : { node: nodes[70] }));
measure("find what is under the pointer", i => hit(panels[0], 100 + i, -150));
measure("paths through a node", i => { state.chosen = i % 2 ? "a5.h5" : ""; refresh(); });
state.chosen = "";
measure("difference", () => { state.tab = "difference"; refresh(); });
measure("patterns", () => { state.tab = "patterns"; refresh(); });
document.documentElement.setAttribute("data-said", encodeURIComponent(JSON.stringify(said)));
"""


def times(page: str) -> dict[str, list[float]]:
    """What the page's clock said."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.html")
        path.write_text(page.replace("</body>", f"<script>{MEASURE}</script></body>"), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1200,900"]
        command = [str(CHROMIUM), *flags, f"--user-data-dir={folder}/profile", "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(unquote(re.findall(r'data-said="([^"]*)"', done.stdout)[0]))


def main() -> None:
    """Print a row for every number of edges."""
    scores = scores_of(12, 12, 0), scores_of(12, 12, 1, 9)
    shape = (1, 12, 12, 15)
    attention = attention_of(shape, 1.0), attention_of(shape, 0.05, seed=1)
    few = replace(scores[1], mean=scores[1].mean * scores[1].top(60).kept)  # as a sparse model has
    for n, sparse in ((3000, few), (3000, scores[1]), (11_000, scores[1])):
        tokens = [[f"token{i}" for i in range(15)]]
        viewer = circuit_viewer(scores[0], sparse, share=1.0, attention=attention, tokens=tokens, max_edges=n)
        said = f"{min(n, int((sparse.mean != 0).sum())):,} sparse edges"
        print(f"{n:,} dense and {said}, {len(viewer.html.encode()) / 1000:.0f} KB")
        for name, taken in times(viewer.html).items():
            print(f"  {taken[0]:7.1f} {median(taken):7.1f} ms  {name}")


if __name__ == "__main__":
    main()
