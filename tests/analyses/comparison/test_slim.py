"""A slim comparison has the same table, figures and viewer as the full one, and refuses what it no longer holds."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch

from sparselens import analyses
from sparselens.analyses.comparison import files, places, slim
from sparselens.analyses.comparison.figures import figures_of, tokens_view
from sparselens.analyses.comparison.report import report_page
from sparselens.analyses.comparison.results import SIDES, Comparison
from sparselens.analyses.figures.viewer import circuit_viewer
from sparselens.analyses.figures.viewer_edges import ranked_edges
from tests.analyses.comparison.compared import QUICK, draw_nothing
from tests.analyses.small_models import tiny_pairs
from tests.tiny_models import tiny_bridge


@pytest.fixture(scope="module")
def small(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison saved slim and loaded again."""
    return analyses.load_comparison(comparison.save(tmp_path_factory.mktemp("slim") / "numbers.zip", slim=True))


@pytest.fixture(scope="module")
def sparing(comparison: Comparison) -> Comparison:
    """A comparison with fewer scores than the graph has edges, as for a large model, and rounded weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slim, "LISTED", 10)
        patch.setattr(slim, "DRAWN", 40)
        patch.setattr(slim, "TOKEN_EDGES", 40)
        return slim.slim(comparison)


@pytest.mark.parametrize("which", ["small", "sparing"])
def test_every_number_of_the_table_is_the_same(which: str, comparison: Comparison, request: pytest.FixtureRequest):
    found: Comparison = request.getfixturevalue(which)
    assert found.table().equals(comparison.table()) and found.about == comparison.about
    for form in ("markdown", "latex", "html"):
        assert found.table(form) == comparison.table(form)


def test_pages_are_the_same(comparison: Comparison, small: Comparison, monkeypatch: pytest.MonkeyPatch):
    draw_nothing(monkeypatch)  # figures have their own test
    assert small.viewer().html == comparison.viewer().html
    assert tokens_view(small).html == tokens_view(comparison).html
    assert report_page(small) == report_page(comparison)


def test_figures_are_the_same(comparison: Comparison, sparing: Comparison, tmp_path: Path):
    """Of one that holds less than `small`, whose first figure is laid out as its page is."""
    whole, found = figures_of(comparison), figures_of(sparing)
    assert whole.keys() == found.keys()
    for name in whole.keys() - {"fig1_tokens"}:  # which draws more lines than have exact weights
        drawn = [
            draw(tmp_path / f"{side}.svg").read_bytes() for side, draw in (("one", whole[name]), ("two", found[name]))
        ]
        assert drawn[0] == drawn[1], name


def test_a_page_of_the_largest_edges_is_the_same(comparison: Comparison, sparing: Comparison):
    def shown(of: Comparison) -> str:
        return circuit_viewer(of.dense.edges, of.sparse.edges, share=0.5, max_edges=20, title="the same").html

    assert shown(sparing) == shown(comparison)
    ranked, known = ranked_edges(sparing.dense.edges, 100), sparing.dense.edges.mean[sparing.dense.edges.exists]
    assert len(ranked) == int(known.isfinite().sum()) < 100 and np.isfinite(ranked.score).all()
    assert ranked.total == ranked_edges(comparison.dense.edges, 1).total


def test_the_scores_that_are_left_are_the_largest(comparison: Comparison, sparing: Comparison):
    for side in SIDES:
        whole, left = getattr(comparison, side).edges, getattr(sparing, side).edges
        known = left.mean.isfinite() & left.exists
        n = max(10, len(comparison.circuit(side)), getattr(comparison, side).circuits.faithful_edges)
        assert int(known.sum()) == n < whole.graph.n_edges
        assert torch.equal(left.mean[known], whole.mean[known]) and torch.equal(known, whole.top(n).kept)
        assert left.total == pytest.approx(float(whole.mean.double().abs().sum()))
        assert left.smallest(0.5).edges == whole.smallest(0.5).edges
        assert left.smallest(0.5).score_share == pytest.approx(whole.smallest(0.5).score_share)


def test_weights_keep_their_colours_and_the_strongest_themselves(comparison: Comparison, sparing: Comparison):
    whole, found = comparison.dense.attention, sparing.dense.attention
    assert len(np.unique(found.weight)) < len(np.unique(whole.weight)) / 2
    for weights in (found.weight, whole.weight):
        assert weights.dtype == whole.weight.dtype
    np.testing.assert_array_equal(np.rint(255 * found.weight), np.rint(255 * whole.weight))  # on the page
    np.testing.assert_array_equal(np.floor(256 * found.weight), np.floor(256 * whole.weight))  # on paper
    for prompt in range(whole.n_prompts):
        here = whole.prompt == prompt
        strongest = np.argsort(whole.weight[here], kind="stable")[-40:]
        np.testing.assert_array_equal(np.argsort(found.weight[here], kind="stable")[-40:], strongest)
        np.testing.assert_array_equal(found.weight[here][strongest], whole.weight[here][strongest])


def test_what_is_not_there_is_refused(small: Comparison, sparing: Comparison, tmp_path: Path):
    edges = sparing.dense.edges
    for ask in (
        lambda: small.dense.curves,
        lambda: small.dense.edges.of_prompt(0),
        lambda: small.dense.edges.interval("m0->logits"),
        lambda: small.dense.edges.stability(0.5),
        lambda: small.save_circuits(tmp_path / "circuits"),
    ):
        with pytest.raises(ValueError, match="this comparison is slim: `sparselens compare` writes the full one"):
            ask()
    known = int((edges.mean.isfinite() & edges.exists).sum())
    with pytest.raises(ValueError, match=rf"the graph has 175 edges, of which {known} have a score"):
        edges.top(known + 1)
    with pytest.raises(ValueError, match=rf"only the {known} largest scores are known, which do not reach a share"):
        edges.smallest(0.9999)
    for ask in (lambda: edges.greedy(3), lambda: edges.top(2).rank_correlation(edges.top(3))):
        with pytest.raises(ValueError, match="in a slim comparison, only the largest are known"):
            ask()
    assert not list(tmp_path.iterdir())


def test_a_slim_one_is_saved_again_either_way(small: Comparison, tmp_path: Path):
    first = small.save(tmp_path / "a.zip", slim=True)
    assert small.save(tmp_path / "b.zip", slim=True).read_bytes() == first.read_bytes()
    folder = analyses.load_comparison(small.save(tmp_path / "folder"))
    assert folder.table().equals(small.table()) and folder.summary is not None
    with pytest.raises(ValueError, match=r"a slim comparison is one file: want a name that ends in \.zip, not numbers"):
        small.save(tmp_path / "numbers", slim=True)


def test_a_ratio_that_is_not_finite_stays_unknown(tmp_path: Path):
    whole = analyses.compare(tiny_bridge("gpt2"), tiny_bridge("gpt2"), tiny_pairs(), **(QUICK | {"prune_runs": 0}))
    still = replace(whole.sparse.edges, mean=0 * whole.sparse.edges.mean, per_prompt=0 * whole.sparse.edges.per_prompt)
    whole = replace(whole, sparse=replace(whole.sparse, edges=still))
    found = slim.slim(whole)
    for comparison in (whole, found):
        with pytest.raises(ValueError, match="not finite"):
            comparison.fewer_edges_of_mean()
    assert found.table().equals(whole.table())


# -- files that are no comparison


def rewritten(path: Path, change: dict[str, bytes | None]) -> Path:
    with ZipFile(path) as file:
        contents: dict[str, Any] = {name: file.read(name) for name in file.namelist()} | change
    with ZipFile(path, "w", ZIP_DEFLATED) as file:
        for name, content in contents.items():
            if content is not None:
                file.writestr(name, content)
    return path


def test_damaged_files_are_refused(small: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = small.save(tmp_path / "numbers.zip", slim=True)
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"no zip at all"):
        (tmp_path / "broken.zip").write_bytes(broken)
        with pytest.raises(ValueError, match=r"broken\.zip is not a comparison, or is damaged"):
            analyses.load_comparison(tmp_path / "broken.zip")
    for change, message in (
        ({"dense.edges.safetensors": b"cut short"}, r"dense\.edges\.safetensors does not hold a EdgeScores"),
        ({"dense.edges.safetensors": None}, r"dense\.edges\.safetensors is missing from the comparison"),
        ({"comparison.json": b"{"}, r"comparison\.json is broken"),
        ({"comparison.json": None}, r"holds no comparison \(no comparison\.json\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            analyses.load_comparison(rewritten(path, change))
    path.write_bytes(content)
    monkeypatch.setattr(files, "LARGEST", 1000)
    with pytest.raises(ValueError, match="more than any comparison has"):
        analyses.load_comparison(path)


# -- what ships


def test_shipped_comparisons_open_by_name(monkeypatch: pytest.MonkeyPatch):
    names = places.shipped_comparisons()
    assert {"addition/addition", "stories260k/gendered_pronoun"} <= set(names)
    assert sum(file.stat().st_size for file in places.SHIPPED.rglob("*.zip")) < 3 * 2**20
    for name in names:
        found = analyses.load_comparison(name)
        assert name.split("/")[1] in found.about.task and found.summary is not None
        for text in (found.about.command, *found.about.notes, *found.about.names):
            assert not any(word.startswith("/") for word in text.split())
    with pytest.raises(ValueError, match=r"no such comparison: 'adition/addition', did you mean 'addition/addition'\?"):
        analyses.load_comparison("adition/addition")


def test_a_shipped_comparison_opens_its_viewer():
    found = analyses.load_comparison("stories260k/gendered_pronoun")
    page = found.viewer().html
    assert "stories260k-sparse" in page and "edges needed" in page.lower()
    assert found.fewer_edges().mean > 10
