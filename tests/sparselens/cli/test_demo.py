"""The main job on the models that ship: what the README promises of them."""

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparselens.analyses import compare, load_comparison
from sparselens.cli import addition
from sparselens.cli.addition import HEADS, TASK, Problems, batch_of, measure, tokens_of
from sparselens.cli.demo import demo
from sparselens.gates.statistics import record_gates
from sparselens.gates.surgery import is_sparse, sparsify
from sparselens.models.folder import load, load_transformers
from sparselens.models.places import MODELS, shipped_models
from sparselens.training.evaluation import Evaluation
from sparselens.training.result import PostTrainResult
from tests.analyses.comparison.compared import draw_nothing

KEYS = {
    "exact_match",
    "open_edges_per_example",
    "open_edges_per_layer",
    "share_of_visible_pairs",
    "share_of_all_pairs",
    "open_edges_by_kind",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:  # a few pairs instead of a hundred
        patch.setattr("sparselens.analyses.compare", partial(compare, n=8, method="eap", prune_runs=8))
        draw_nothing(patch)  # but the demo's own picture
        demo(out=out, json=True)
    return json.loads((out / "demo.json").read_text()), out


def test_demo_writes_its_table_figures_and_page(
    table: tuple[dict[str, Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, out = table
    assert set(numbers) == {"dense", "sparse"}
    assert set(numbers["dense"]) == set(numbers["sparse"]) == KEYS
    assert {file.name for file in out.iterdir()} == {
        "demo.json", "addition.pdf", "addition.svg", "addition.png", "addition.html", "numbers", "report.html",
    }  # fmt: skip
    assert (out / "addition.pdf").read_bytes().startswith(b"%PDF")
    assert load_comparison(out / "numbers").about.task.startswith("addition")


def test_the_shipped_sparse_model_adds_with_fewer_than_six_edges(table: tuple[dict[str, Any], Path]) -> None:
    dense, sparse = table[0]["dense"], table[0]["sparse"]
    assert dense["exact_match"] == sparse["exact_match"] == 1.0
    assert dense["open_edges_per_example"] == 4 * HEADS * 121
    assert sparse["open_edges_per_example"] == pytest.approx(5.5017)
    assert sparse["open_edges_per_layer"] == pytest.approx([4.0, 1.5017, 0.0, 0.0])
    assert dense["share_of_visible_pairs"] == dense["share_of_all_pairs"] == 1.0


def test_the_carry_is_visible_in_layer_one(table: tuple[dict[str, Any], Path]) -> None:
    by_kind = table[0]["sparse"]["open_edges_by_kind"]
    assert by_kind["no carry"][1] < by_kind["one carry"][1] < by_kind["propagated carry"][1]


def test_measuring_leaves_a_dense_model_dense() -> None:
    model = load("addition")
    tokens = batch_of([(53, 21)])["input_ids"]
    before = model(tokens)
    measure(model)
    assert torch.equal(model(tokens), before)
    assert "blocks.0.attn.hook_gate" not in model.hook_dict


def test_shipped_models_are_small() -> None:
    def size(*names: str) -> int:
        return sum(file.stat().st_size for name in names for file in (MODELS / name).iterdir())

    assert {"addition", "addition-sparse", "stories260k", "stories260k-sparse"} <= set(shipped_models())
    assert size("addition", "addition-sparse") < 2_000_000


def test_training_batches_depend_only_on_seed_and_index() -> None:
    assert torch.equal(Problems(3)(7)["input_ids"], Problems(3)(7)["input_ids"])
    assert not torch.equal(Problems(3)(7)["input_ids"], Problems(4)(7)["input_ids"])
    batch = Problems(0)(0)
    answers = batch["labels"][:, list(TASK.answer_positions)]
    assert answers.min() >= 0 and answers.max() <= 9


def test_retraining_makes_both_models_and_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addition, "DENSE_STEPS", 3)
    monkeypatch.setattr(addition, "SPARSE", replace(addition.SPARSE, steps=2))
    monkeypatch.setattr(addition, "RESTARTS", 1)
    dense, sparse = addition.retrain_both(tmp_path, seed=0)
    first = load(sparse).state_dict()
    assert not is_sparse(load(dense))
    assert is_sparse(load(sparse))
    assert all((tmp_path / name / "checkpoint.pt").exists() for name in (".", "anew", "restarts/0"))
    addition.retrain_both(tmp_path, seed=0, resume=True)  # all is done: the same models again
    again = load(sparse).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


@pytest.mark.parametrize("right", [0.9, 1.0])
@pytest.mark.parametrize(
    ("first", "second", "goes_on"), [((1.0, True), 2.0, False), ((2.0, True), 1.0, True), ((1.0, False), 2.0, True)]
)
def test_the_better_of_two_runs_goes_on(
    first: tuple[float, bool],
    second: float,
    goes_on: bool,
    right: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends, exact = iter([result(*first), result(second)]), iter([1.0, right])
    monkeypatch.setattr(addition, "DENSE_STEPS", 3)
    monkeypatch.setattr(addition, "RESTARTS", 0)
    monkeypatch.setattr(addition, "_post_train", lambda *_: next(ends))
    monkeypatch.setattr(addition, "measure", lambda _: SimpleNamespace(exact_match=next(exact, 1.0)))
    _, folder = addition.retrain_both(tmp_path, seed=0)
    model: Any = load_transformers(folder)[0]
    queries = model.transformer.h[0].attn.c_attn.weight[:, : addition.D_MODEL]
    assert (not queries.any()) == (goes_on and right == 1.0)  # only the second run begins without queries


def result(cost: float, feasible: bool = True) -> PostTrainResult:
    found = Evaluation(0.001, 5.0, 0.01, 0.01, 0.1, cost, [0.01] * 4)
    return PostTrainResult(found, found, 1, feasible, 0.002, [])


def gated_addition() -> Any:
    return sparsify(load_transformers("addition-sparse")[0])


def test_a_head_that_begins_anew_has_its_gates_on_the_threshold() -> None:
    model = gated_addition()
    tokens = batch_of(TASK.problems()[::100])["input_ids"]
    gates = []
    for one in (model, addition._without_queries(model, [(0, 0)])):
        with torch.no_grad(), record_gates(one) as found:
            one(tokens)
        gates.append(found.open)
    assert gates[0][0, 0] == 4 and gates[1][0, 0] == 0  # closed in evaluation
    assert gates[0][0, 1] == gates[1][0, 1]


def test_heads_begin_anew_in_the_order_of_their_edges_and_upper_layers_first() -> None:
    model = gated_addition()
    with torch.no_grad():  # layer 0's queries and keys in layer 2 open some gates there
        model.transformer.h[2].attn.c_attn.weight.copy_(model.transformer.h[0].attn.c_attn.weight)
    order, tried = list[tuple[int, int]](), set[tuple[int, int]]()
    while place := addition._next_head(model, tried):
        order.append(place)
        tried.add(place)
    layers = [layer for layer, _ in order]
    assert layers[0] == 2 and layers == sorted(layers, key=lambda layer: layer < 2)
    assert {place for place in order if place[0] < 2} == {(0, 0), (1, 0), (1, 1)}


def test_a_head_that_begins_anew_is_kept_only_where_the_model_gets_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gated_addition()
    ends = iter([result(2.0), result(0.5, feasible=False), result(0.5), result(0.7), result(0.6)])
    monkeypatch.setattr(addition, "_post_train", lambda *_: next(ends))
    monkeypatch.setattr(addition, "_without_queries", lambda model, *_: copy.deepcopy(model))
    monkeypatch.setattr(addition, "RESTARTS", 5)
    found, kept = addition._restart_heads(model, result(1.0), None, 0, Path("x"), False)
    assert kept.sparse.cost == 0.5 and kept.feasible and found is not model


def test_which_edges_are_open_in_each_of_all_sums() -> None:
    problems = TASK.problems()
    model = load("addition-sparse")
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens_of(problems), names_filter=lambda name: name.endswith("hook_gate"))
    layers = [cache[f"blocks.{layer}.attn.hook_gate"].sum(1) > 0 for layer in range(4)]  # in either head
    a_tens, a_units, b_tens, b_units = 0, 1, 3, 4
    hundreds, tens, units = TASK.answer_positions[-3:]
    always = [(hundreds, a_tens), (hundreds, b_tens), (units, a_units), (units, b_units)]

    assert edges(layers[0].all(0)) == edges(layers[0].any(0)) == always
    assert edges(layers[1].all(0)) == [(tens, hundreds)]
    assert edges(layers[1].any(0)) == [(hundreds, units), (tens, hundreds), (tens, units)]
    assert not layers[2].any() and not layers[3].any()

    carry = torch.tensor([TASK.carries(a, b)[0] for a, b in problems])
    column = torch.tensor([a // 10 + b // 10 for a, b in problems])
    assert torch.equal(layers[1][:, tens, units], carry)
    # the hundreds read the units where the carry ripples through a tens column of nine, and in 67 sums that need not
    to_hundreds, ripples = layers[1][:, hundreds, units], carry & (column == 9)
    assert ripples.sum() == 450 and to_hundreds[ripples].all()
    idle = to_hundreds & ~ripples
    assert idle.sum() == 67 and carry[idle].all() and (column[idle] == 10).all()


def test_without_head_1_of_layer_1_exactly_the_sums_with_a_units_carry_go_wrong() -> None:
    problems = TASK.problems()
    batch = batch_of(problems)

    def close(gate: torch.Tensor, hook: object) -> torch.Tensor:
        return gate.clone().index_fill_(1, torch.tensor([1]), 0.0)

    with torch.no_grad():
        logits = load("addition-sparse").run_with_hooks(
            batch["input_ids"], fwd_hooks=[("blocks.1.attn.hook_gate", close)]
        )
    places = list(TASK.answer_positions)
    wrong = (logits[:, places].argmax(-1) != batch["labels"][:, places]).any(-1)
    assert torch.equal(wrong, torch.tensor([TASK.carries(a, b)[0] for a, b in problems]))


def edges(is_open: torch.Tensor) -> list[tuple[int, int]]:
    """Which queries read which keys."""
    return [(int(query), int(key)) for query, key in is_open.nonzero()]
