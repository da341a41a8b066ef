"""The main job on the models that ship: what the README promises of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparselens.cli import addition
from sparselens.cli.addition import HEADS, TASK, Problems, batch_of, measure
from sparselens.cli.demo import demo
from sparselens.folder import MODELS, load, shipped_models
from sparselens.surgery import is_sparse

KEYS = {
    "exact_match",
    "open_edges_per_example",
    "open_edges_per_layer",
    "share_of_visible_pairs",
    "share_of_all_pairs",
    "open_edges_by_kind",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, object]], Path]:
    out = tmp_path_factory.mktemp("demo")
    demo(out=out, json=True)
    return json.loads((out / "demo.json").read_text()), out


def test_demo_writes_its_table_figures_and_page(
    table: tuple[dict[str, dict[str, object]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, out = table
    assert set(numbers) == {"dense", "sparse"}
    assert set(numbers["dense"]) == set(numbers["sparse"]) == KEYS
    assert {file.name for file in out.iterdir()} == {
        "demo.json", "addition.pdf", "addition.svg", "addition.png", "addition.html",
    }  # fmt: skip
    assert (out / "addition.pdf").read_bytes().startswith(b"%PDF")


def test_the_shipped_sparse_model_adds_with_at_most_eight_edges() -> None:
    dense, sparse = measure(load("addition")), measure(load("addition-sparse"))
    assert dense.exact_match == 1.0
    assert sparse.exact_match >= 0.999
    assert dense.open_edges_per_example == 4 * HEADS * 121
    assert sparse.open_edges_per_example <= 8.0
    assert sparse.open_edges_per_layer[3] == 0.0
    # one edge in the 450 sums whose carry ripples through a tens column of nine; layer 1 does all others
    assert sparse.open_edges_per_layer[2] == pytest.approx(0.045)
    assert dense.share_of_visible_pairs == dense.share_of_all_pairs == 1.0


def test_the_carry_is_visible_in_layer_one() -> None:
    by_kind = measure(load("addition-sparse")).open_edges_by_kind
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
    monkeypatch.setattr(addition, "PRUNE", replace(addition.PRUNE, steps=3))
    monkeypatch.setattr(addition, "POLISH", replace(addition.POLISH, steps=2))
    dense, sparse = addition.retrain_both(tmp_path, seed=0)
    first = load(sparse).state_dict()
    assert not is_sparse(load(dense))
    assert is_sparse(load(sparse))
    addition.retrain_both(tmp_path, seed=0, resume=True)  # both runs are over: the same models again
    again = load(sparse).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_an_edge_stands_for_every_carry_in_every_sum() -> None:
    problems = TASK.problems()
    model = load("addition-sparse")
    tokens = batch_of(problems)["input_ids"]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_gate"))
    in_layer = [cache[f"blocks.{layer}.attn.hook_gate"].sum((1, 2, 3)).int().tolist() for layer in (1, 2)]
    units_carry = [TASK.carries(a, b)[0] for a, b in problems]
    ripples = [carry and a // 10 + b // 10 == 9 for (a, b), carry in zip(problems, units_carry, strict=True)]
    assert in_layer[0] == [1 + carry for carry in units_carry]
    assert in_layer[1] == [int(ripple) for ripple in ripples]
