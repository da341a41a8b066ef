"""How long the circuit viewer's page takes in headless Chromium, and how large it is. Not collected by pytest.

    python -m tests.benchmarks.bench_viewer

Models: 12 layers of 12 heads (32,491 edges) and 30 layers of 9 heads (SmolLM2 135M, 123,211 edges) with random scores
and patterns of one prompt of 15 tokens; the page holds 3,000 dense and 60 sparse edges, 3,000 of each, or 11,000 of
each. Times are milliseconds of `performance.now()` without a GPU: the least, the median and the most of ten fresh
browsers, each of which draws once for the first time and does everything else 15 times. Each reads a pixel of both
canvases, so that what was asked for is drawn. The first drawing is counted from where the page's data begin, with all
edges that it holds: reading the data and the scripts is part of it. Thresholds are those of both panels at once.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from urllib.parse import unquote

from sparselens.analyses import circuit_viewer
from tests.analyses.figures.test_viewer import CHROMIUM, attention_of, scores_of, with_more

MEASURE = """
const flushed = () => panels.slice(0, 2).map(({ canvas }) => canvas.getContext("2d").getImageData(0, 0, 1, 1));
flushed();
const said = { "first drawing": [performance.now() - begun] };
function measure(name, act) {
  const taken = [];
  for (let i = 0; i < 16; i++) {
    const start = performance.now();
    act(i);
    flushed();
    taken.push(performance.now() - start);
  }
  said[name] = taken.slice(1);
}
const node = nodeOf.get("a5.h5"), many = models[0].list.length;
state.mode = "top"; state.dead = true;
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
        above, data, below = with_more(page, MEASURE).rpartition('<script type="application/json"')
        path.write_text(f"{above}<script>const begun = performance.now();</script>{data}{below}", encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1200,900"]
        command = [str(CHROMIUM), *flags, f"--user-data-dir={folder}/profile", "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(unquote(re.findall(r'data-said="([^"]*)"', done.stdout)[0]))


def pages() -> Iterator[tuple[str, str]]:
    """What each page holds, and the page."""
    for n_layers, n_heads in ((12, 12), (30, 9)):
        scores = scores_of(n_layers, n_heads, 0), scores_of(n_layers, n_heads, 1, 9)
        shape = (1, n_layers, n_heads, 15)
        attention = attention_of(shape, 1.0), attention_of(shape, 0.05, seed=1)
        few = replace(scores[1], mean=scores[1].mean * scores[1].top(60).kept)  # as a sparse model has
        for n, sparse in ((3000, few), (3000, scores[1]), (11_000, scores[1])):
            tokens = [[f"token{i}" for i in range(15)]]
            viewer = circuit_viewer(scores[0], sparse, share=1.0, attention=attention, tokens=tokens, max_edges=n)
            of = f"{n_layers} x {n_heads}, {n:,} and {min(n, int((sparse.mean != 0).sum())):,} edges"
            yield f"{of}, {len(viewer.html.encode()) / 1000:.0f} KB", viewer.html


def main() -> None:
    """Print a row for every number of edges."""
    for said, page in pages():
        print(said)
        runs = [times(page) for _ in range(10)]
        for name in runs[0]:
            taken = sorted(value for run in runs for value in run[name])
            print(f"  {taken[0]:7.1f} {median(taken):7.1f} {taken[-1]:7.1f} ms  {name}")


if __name__ == "__main__":
    main()
