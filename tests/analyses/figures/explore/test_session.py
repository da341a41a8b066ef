"""Tests of cuts, undo, notes and sharing; that a failed command changes nothing, and no string becomes markup."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.figures.explore.reading import CLOSED, CUT, OPENED
from sparselens.analyses.patching.cuts import Cuts, Shape, cut_hooks, run_with_cuts
from sparselens.prompts.fitting import text_of
from tests.tiny_models import tiny_bridge, tiny_model, tiny_tokenizer

PROMPT = "Lily saw a big dog. She was"
HOSTILE = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def sparse() -> Any:
    return sl.load("stories260k-sparse")


@pytest.fixture(scope="module")
def dense() -> Any:
    return sl.load("stories260k")


@pytest.fixture
def found(sparse: Any) -> Any:
    return analyses.explore(sparse, prompt=PROMPT, title="stories")


def drawn(found: Any) -> dict[str, Any]:
    """What a page shows of predictions and edges, without timings."""
    state = found.state
    return {name: state[name] for name in ("prompt", "cuts", "notes", "tokens", "models")}


def last(found: Any, model: int = 0) -> list[list[Any]]:
    return found.state["models"][model]["answers"][-1]["top"]


def test_the_answer_is_the_models_own(found: Any, sparse: Any):
    tokens = sparse.to_tokens(PROMPT)
    with torch.no_grad():
        wanted, ids = sparse(tokens)[0, -1].softmax(-1).topk(10)
    assert [before for _, before, _ in last(found)] == pytest.approx(wanted.tolist(), abs=1e-5)
    assert last(found)[0][0] == text_of(sparse.tokenizer, int(ids[0]))
    assert "".join(found.state["tokens"]).endswith(PROMPT) and len(found.state["tokens"]) == tokens.shape[1]


def test_a_cut_moves_the_answer_as_the_model_does(found: Any, sparse: Any):
    before = last(found)
    found.cut("a1.h1", "p3")
    tokens = sparse.to_tokens(PROMPT)
    run = run_with_cuts(sparse, tokens, Cuts.of(("a1.h1", "p3"), Shape.of(sparse, tokens.shape[1])))
    answer = found.state["models"][0]["answers"][-1]
    assert answer["top"] != before and answer["moved"] > 0
    assert max(after for _, _, after in answer["top"]) == pytest.approx(float(run.log_probs[-1].max().exp()), abs=1e-5)
    assert found.state["models"][0]["edges"]["after"] == len(run.edges)


def test_restored_is_as_before(found: Any):
    whole = drawn(found)
    found.cut("a0", "m2", "a1.h1:1->2")
    found.restore("m2")
    assert found.step.cuts == ("a0", "a1.h1:1->2")
    found.restore()
    assert drawn(found) == whole


def test_steps_are_undone_and_done_again(found: Any):
    states = [drawn(found)]
    for change in (lambda: found.cut("a1.h1"), lambda: found.note("a1.h1", "copies"), lambda: found.ask("Once upon")):
        change()
        states.append(drawn(found))
    for wanted in states[-2::-1]:
        found.undo()
        assert drawn(found) == wanted
    assert found.state["can"] == {"undo": True, "redo": True}  # the prompt itself was a step
    for wanted in states[1:]:
        found.redo()
        assert drawn(found) == wanted
    with pytest.raises(ValueError, match="nothing to redo"):
        found.redo()
    found.undo()
    found.cut("m0")  # a new step discards what was undone
    assert found.state["can"] == {"undo": True, "redo": False}


def test_nothing_to_undo(sparse: Any):
    with pytest.raises(ValueError, match="nothing to undo"):
        analyses.explore(sparse).undo()


def test_another_prompt_keeps_the_cuts_that_it_can_have(found: Any):
    found.cut("p2", "a0.h1", "a0.h1:0->2", "m1")
    found.note("p2", "dog")
    found.note("m1", "adds")
    found.ask("One day")
    assert found.step.cuts == ("a0.h1", "m1") and list(found.step.notes) == ["m1"]


def test_fates_of_edges_add_up(found: Any):
    whole = found.state["models"][0]["edges"]
    assert whole["fates"][1:] == [0, 0, 0] and whole["before"] == whole["after"] == whole["fates"][0]
    found.cut("a1.h1", "m0")
    edges = found.state["models"][0]["edges"]
    kept, cut, closed, opened = edges["fates"]
    assert min(cut, closed, opened) > 0
    assert edges["before"] == whole["before"] == kept + cut + closed
    assert edges["after"] == kept + opened
    layer, head, key, query, before, after, fate = map(np.array, edges["columns"])
    assert ((fate == CUT) == ((layer == 1) & (head == 1) & (before >= 0))).all() and (key <= query).all()
    assert (after[(fate == CUT) | (fate == CLOSED)] == -1).all() and (before[fate == OPENED] == -1).all()


def test_the_same_cut_in_both_models(dense: Any, sparse: Any):
    found = analyses.explore(sparse, dense, PROMPT)
    assert [model["name"] for model in found.state["models"]] == ["dense", "sparse"]
    before = [last(found, 0), last(found, 1)]
    found.cut("a1.h1")
    assert all(last(found, i) != before[i] for i in (0, 1))
    n = len(found.state["tokens"])
    assert found.state["models"][0]["edges"]["before"] == 5 * 8 * n * (n + 1) // 2


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ({"do": "cut", "names": ["a9.h9"]}, "no such part: 'a9.h9'"),
        ({"do": "cut", "names": "a0"}, "want a list of names"),
        ({"do": "cut", "names": [0]}, "want a list of names"),
        ({"do": "cut"}, "cut takes names"),
        ({"do": "cut", "names": [], "more": 1}, "cut takes names"),
        ({"do": "ask", "prompt": " \n"}, "the prompt is empty"),
        ({"do": "ask", "prompt": None}, "want a string"),
        ({"do": "ask", "prompt": "word " * 300}, "want at most 256"),
        ({"do": "ask", "prompt": "x" * 10_001}, "want at most 10,000"),
        ({"do": "ask", "prompt": "half \ud800"}, "lone surrogate"),
        ({"do": "note", "name": "b0", "label": "", "group": "", "pinned": True}, "no such part: 'b0'"),
        ({"do": "note", "name": "a0", "label": 3, "group": "", "pinned": True}, "want a string"),
        ({"do": "load", "shared": "/etc/passwd"}, "want a JSON object"),
        ({"do": "load", "shared": {"sparselens": "x"}}, "not the state of an exploration"),
        ({"do": "redo"}, "nothing to redo"),
        ({"do": "save"}, "no such command"),
        ({"do": "__class__"}, "no such command"),
        ([], "no such command"),
        (None, "no such command"),
    ],
)
def test_a_mistake_is_told_and_changes_nothing(found: Any, command: Any, why: str):
    found.cut("a0.h1")
    before = found.state
    assert why in found.obey(command)["error"]
    assert found.state == before


def test_a_page_toggles(found: Any):
    assert found.obey({"do": "cut", "names": ["a0.h1", "m1"]})["state"]["cuts"] == ["a0.h1", "m1"]
    assert found.obey({"do": "cut", "names": ["m1"]})["state"]["cuts"] == ["a0.h1"]
    assert found.obey({"do": "cut", "names": ["a0.h1", "m1"]})["state"]["cuts"] == ["a0.h1", "m1"]  # one was not cut
    assert found.obey({"do": "restore"})["state"]["cuts"] == []


def test_states_are_shared_as_json(found: Any, sparse: Any, tmp_path: Path):
    found.cut("a1.h1:0->2", "p1")
    found.note("p1", "name", "people")
    found.note("a0.h2", pinned=True)
    other = analyses.explore(sparse)
    other.load(found.save(tmp_path / "state.json"))
    assert other.step == found.step and drawn(other) == drawn(found)
    found.note("a0.h2", pinned=False)
    assert list(found.step.notes) == ["p1"]
    found.obey({"do": "load", "shared": json.loads((tmp_path / "state.json").read_text())})
    assert drawn(other) == drawn(found)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cuts": ["a0.h1:0->999"]}, "no such part: 'a0.h1:0->999'"),
        ({"cuts": ["head one"]}, "no such part: 'head one'"),
        ({"notes": {"x": {}}}, "no such part: 'x'"),
        ({"notes": {"a0": {"color": "red"}}}, "want label, group and pinned"),
        ({"notes": []}, "and notes"),
        ({"prompt": 5}, "want a string"),
        ({"sparselens": "exploration 99"}, "want sparselens = 'exploration 1'"),
    ],
)
def test_states_of_others_are_checked(found: Any, change: dict[str, Any], why: str):
    with pytest.raises(ValueError, match=why.replace(".", r"\.")):
        found.load({**found.shared, **change})


def test_files_hold_strict_json(found: Any, tmp_path: Path):
    for text in ("{", '{"a": NaN}', "[" * 100_000):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(ValueError):
            found.load(tmp_path / "state.json")


def test_the_recorded_page_asks_for_nothing_and_holds_strings_as_data(found: Any, tmp_path: Path):
    found.ask(HOSTILE)
    found.note("a0", HOSTILE, HOSTILE)
    found.title = HOSTILE
    page = found.save_html(tmp_path / "page.html").read_text()
    assert HOSTILE not in page and page.count("<script") == 2 and page.count("</script>") == 2
    assert "connect-src 'none'" in page and "default-src 'none'" in page and "'unsafe-inline'; img-src" in page
    assert not any(word in page.split('id="data"')[0] for word in ("http://", "https://", "@import", "src="))


def test_what_cannot_be_explored_says_what_would_do(sparse: Any, tmp_path: Path):
    with pytest.raises(ValueError, match=r"pass sparselens\.load\('stories260k'\)"):
        analyses.explore("stories260k")
    with pytest.raises(ValueError, match=r"not a LlamaForCausalLM.*boot_transformers"):
        analyses.explore(tiny_model("llama"))
    bare = tiny_bridge("llama")
    with pytest.raises(ValueError, match=r"set model\.tokenizer"):
        analyses.explore(bare)
    bare.tokenizer = tiny_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="dense and sparse have different tokenizers"):
        analyses.explore(sparse, bare)


def test_an_unknown_character_is_named():
    found = analyses.explore(sl.load("addition-sparse"))
    assert "does not know 'x' in the prompt '5x'" in found.obey({"do": "ask", "prompt": "5x"})["error"]


def test_notebooks_get_the_live_page_over_the_recorded_one(found: Any):
    pytest.importorskip("anywidget", reason="the live page of notebooks needs anywidget")
    shown = found._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert (
        'sandbox="allow-scripts allow-downloads"' in shown["text/html"]
        and "allow-same-origin" not in shown["text/html"]
    )


def test_the_widget_answers_clicks(found: Any, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("anywidget", reason="the live page of notebooks needs anywidget")
    widget, sent = found.widget(), []
    assert widget.data["state"]["prompt"] == PROMPT and "export default" in widget._esm
    monkeypatch.setattr(widget, "send", sent.append)
    widget._heard(widget, {"id": 7, "command": {"do": "cut", "names": ["m0"]}}, [])
    widget._heard(widget, {"id": 8, "command": {"do": "cut", "names": ["m99"]}}, [])
    assert sent[0]["id"] == 7 and sent[0]["state"]["cuts"] == ["m0"] and found.step.cuts == ("m0",)
    assert sent[1]["id"] == 8 and "no such part: 'm99'" in sent[1]["error"]


def test_without_anywidget_the_recorded_page_says_what_is_missing(found: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "sparselens.analyses.figures.explore.widget", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'sparselens\[notebook\]'"):
        found.widget()
    shown = found._repr_mimebundle_()
    assert set(shown) == {"text/html", "text/plain"} and "sparselens[notebook]" in shown["text/html"]


def test_why_an_edge_is_open(found: Any, sparse: Any):
    why = found.why("a3.h0:2->9")
    alone = analyses.explain_edge(sparse, PROMPT, "a3.h0", 9, 2, by_position=True)
    assert list(why) == ["sparse"] and str(why["sparse"]) == str(alone)
    assert any(name.startswith("a2.h0:1->2") for name in alone.key_sources)
    (said,) = found.obey({"do": "why", "name": "a3.h0:2->9"})["why"]
    assert (said["model"], said["sentence"]) == ("sparse", str(alone)) and len(said["rows"]) == len(said["values"]) == 8
    json.dumps(said, allow_nan=False)
    assert len(found._steps) == 2  # an explanation is not a step


def test_why_with_cuts(found: Any, sparse: Any):
    """The score is that of the run with the cuts; a cut edge itself is explained as if it were not cut."""
    tokens = sparse.to_tokens(PROMPT)
    names = ("a2.h0:1->2", "a1.h1", "m1", "a3.h0:2->9")
    found.cut(*names)
    why = found.why("a3.h0:2->9")["sparse"]
    hooks = cut_hooks(sparse, Cuts.of(names, Shape.of(sparse, tokens.shape[1])))
    with torch.no_grad(), sparse.hooks(fwd_hooks=hooks):
        _, cache = sparse.run_with_cache(tokens)
    assert float(why.score) == pytest.approx(float(cache["blocks.3.attn.hook_attn_scores"][0, 0, 9, 2]), rel=1e-4)
    assert float(why.per_prompt.sum()) == pytest.approx(float(why.score), rel=1e-4)
    assert why["m1", "m0"] == 0 and "a2.h0:1->2" not in why.key_sources and float(why.weight) == 0


def test_why_of_two_models(sparse: Any, dense: Any):
    found = analyses.explore(sparse, dense, prompt=PROMPT)
    why = found.why("a3.h0:2->9")
    assert list(why) == ["dense", "sparse"] and why["dense"].is_open is None
    assert not any(":" in name for name in why["dense"].key_sources)  # its heads attend everywhere


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("m0", "'m0' is not an attention edge: want one such as a0.h1:3->7"),
        ("a0.h1", "is not an attention edge"),
        ("a9.h0:1->2", "no such part: 'a9.h0:1->2'"),
        ("a0.h0:5->2", "in layer 0 position 2 does not see position 5"),
        (7, "name is 7: want a string"),
    ],
)
def test_there_is_no_why(found: Any, name: Any, said: str):
    assert said in found.obey({"do": "why", "name": name})["error"]


def test_models_in_the_wrong_order_are_refused(sparse: Any, dense: Any):
    with pytest.raises(ValueError, match=r"swap them, explore\(sparse, dense\)"):
        analyses.explore(dense, sparse)
