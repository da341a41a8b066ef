"""Two processes on one machine are one run: same multiplier, same curve, same weights as a single process."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sparselens as sl
from sparselens.cli import build_app
from sparselens.training.batches import rows_of_process
from sparselens.training.checkpoint import load_checkpoint
from sparselens.training.processes import accelerator_for
from tests.launched import launch
from tests.tiny_models import VOCABULARY, tiny_model, tiny_tokenizer
from tests.tiny_runs import THREE, assert_histories_close, gated, ragged_rows, run

ROOT = Path(__file__).parents[3]


RUNS: dict[str, dict[str, Any]] = {
    "transformers": {"family": "llama", "options": {"accumulation": 2, "distillation": 0.5, "checkpoint_every": 3}},
    "bridge": {"kind": "bridge", "family": "gpt2", "options": {"steps": 8}},
    "of unequal rows": {"family": "llama", "options": {"distillation": 0.5, "steps": 8}, "hidden_by": "labels"},
    "that share one model": {"family": "llama", "options": {"distillation": 0.5, "checkpoint_every": 3}, "fsdp": True},
}


OPTIONS = "--lora 2 --steps 4 --seq-len 8 --batch-size 4 --held-out 0.4 --learning-rate 1e-2 --control-steps 0"
BROKEN_OFF = {"transformers": {"stop_at": 15}, "that share one model": {"stop_at": 7}}  # batches; two a step in one


def in_processes(number: int, given: list[dict[str, Any]]) -> None:
    """These runs, one after the other, in so many processes; to start them takes longer than to run."""
    launch(number, "tests.tiny_runs", json.dumps(given))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What two processes leave of every run, and of those that were broken off, under "broken off: ..."."""
    wanted = RUNS | {f"broken off: {name}": RUNS[name] | stop for name, stop in BROKEN_OFF.items()}
    outs = {name: tmp_path_factory.mktemp("run") for name in wanted}
    given: list[dict[str, Any]] = [{"kind": "transformers", "out": str(outs[name]), **wanted[name]} for name in wanted]
    outs["command"] = tmp_path_factory.mktemp("command")
    in_processes(2, [*given, {"command": command(outs["command"], "two")}])
    return outs


def command(folder: Path, name: str) -> list[str]:
    """Adapters, by the command line: a model and its text are in `folder`, where `name` comes."""
    if not (folder / "model").exists():
        sl.save(tiny_model("llama"), folder / "model", tokenizer=tiny_tokenizer(folder / "tokenizer"))
        stories = [" ".join(f"w{(i + j) % (VOCABULARY - 1) + 1}" for j in range(12)) for i in range(60)]
        (folder / "stories.txt").write_text("<|endoftext|>".join(stories))
    given = {"--model": folder / "model", "--data": folder / "stories.txt", "--out": folder / name}
    return ["post-train", *(str(word) for pair in given.items() for word in pair), *OPTIONS.split()]


def states(out: Path) -> list[dict[str, Any]]:
    """Of both processes after a run."""
    return [torch.load(out / f"result-{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformers", "bridge"])
def test_two_processes_are_one_run(folders: dict[str, Path], name: str):
    first, second = states(folders[name])
    alone = gated(name, RUNS[name]["family"])
    history = run(alone, **RUNS[name]["options"]).history

    assert first["history"] == second["history"]  # the multiplier is in it
    assert_histories_close(first["history"], history, rel=1e-5, by=1e-5)
    for part, value in alone.state_dict().items():
        assert torch.equal(first["model"][part], second["model"][part]), part
        torch.testing.assert_close(first["model"][part], value, atol=1e-5, rtol=1e-4, msg=part)
    assert (folders[name] / "log.jsonl").exists()
    assert not list(folders[name].glob(".*"))


@pytest.mark.slow
def test_two_processes_weigh_their_tokens(folders: dict[str, Path]):
    first, _ = states(folders["of unequal rows"])
    alone = gated("transformers", "llama")
    history = run(alone, batches=ragged_rows, **RUNS["of unequal rows"]["options"]).history
    assert_histories_close(first["history"], history, rel=1e-4, by=1e-5)


@pytest.mark.slow
def test_two_processes_that_share_one_model_are_one_run(folders: dict[str, Path]):
    first, second = states(folders["that share one model"])
    alone = gated("transformers", "llama")
    history = run(alone, held_out=THREE, **RUNS["that share one model"]["options"]).history
    assert first["history"] == second["history"]
    assert_histories_close(first["history"], history, rel=1e-5, by=1e-5)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first["model"][name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_the_command_trains_adapters_of_a_model_that_is_shared(folders: dict[str, Path]):
    folder = folders["command"]
    build_app()(command(folder, "one"), standalone_mode=False)
    shared, alone = (json.loads((folder / name / "post-train.json").read_text()) for name in ("two", "one"))
    assert shared["sparse"]["loss"] == pytest.approx(alone["sparse"]["loss"], rel=1e-6)
    assert shared["sparse"]["share_of_visible_pairs"] == pytest.approx(alone["sparse"]["share_of_visible_pairs"])
    of_two, of_one = (load_file(folder / name / "model" / "adapter_model.safetensors") for name in ("two", "one"))
    assert of_two.keys() == of_one.keys()
    for name, value in of_one.items():
        torch.testing.assert_close(of_two[name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes(folders: dict[str, Path], tmp_path: Path):
    broken = {name: folders[f"broken off: {name}"] for name in BROKEN_OFF}
    steps = {name: load_checkpoint(out / "checkpoint.pt")["step"] for name, out in broken.items()}
    assert steps == {"transformers": 6, "that share one model": 6}
    one_more = shutil.copytree(broken["that share one model"], tmp_path / "alone")
    again = {"kind": "transformers", "resume": True}
    in_processes(4, [{**again, "out": str(out), **RUNS[name]} for name, out in broken.items()])

    for name, out in broken.items():
        for rank in range(4):
            resumed = torch.load(out / f"result-{rank}.pt")
            assert_same_run(resumed, torch.load(folders[name] / "result-0.pt"))
    alone = gated("transformers", "llama")
    options = RUNS["that share one model"]["options"]
    history = run(alone, held_out=THREE, out=one_more, resume=True, **options).history
    assert_same_run(
        {"history": history, "model": alone.state_dict()}, torch.load(folders["that share one model"] / "result-0.pt")
    )


def assert_same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same curve, to a millionth, and the same weights."""
    assert_histories_close(one["history"], other["history"], rel=1e-6, by=1e-6)
    for name, value in one["model"].items():
        torch.testing.assert_close(value, other["model"][name], atol=1e-5, rtol=1e-4, msg=name)


def test_rows_are_split_evenly():
    batch = {"input_ids": torch.arange(8).view(4, 2), "labels": torch.arange(4).view(4, 1)}
    (first, at), (second, then) = (rows_of_process(batch, rank, 2) for rank in range(2))
    assert (at, then) == (0, 2)
    for name, value in batch.items():
        assert torch.equal(torch.cat([first[name], second[name]]), value)
    with pytest.raises(ValueError, match="a batch of 4 rows cannot be split evenly over 3 process"):
        rows_of_process(batch, 0, 3)


def test_runs_of_different_precision_follow_each_other():
    for precision in ("no", "bf16", "no"):
        assert accelerator_for(precision).mixed_precision == precision
