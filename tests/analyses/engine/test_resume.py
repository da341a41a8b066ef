"""What an interrupted analysis keeps, and that resuming it gives the numbers of an uninterrupted one."""

import functools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses import attribute_edges, keep_top, patch_edges, patch_heads
from sparselens.analyses.engine.request import open_request
from sparselens.analyses.engine.resume import BatchLog, batch_log
from sparselens.prompts.metrics import logit_difference
from tests.launched import Program
from tests.tiny_models import tiny_bridge, tiny_tokens


def make_pairs(n: int = 8) -> sl.TokenizedPairs:
    return sl.TokenizedPairs(tiny_tokens(n), tiny_tokens(n, seed=1), torch.arange(n) + 1, torch.arange(n) + 2)


def top(model: Any, pairs: sl.TokenizedPairs, metric: Any, **options: Any) -> Any:
    return keep_top(model, pairs, [patch_heads(model, pairs, progress=False)], metric, **options)


def means(model: Any, pairs: sl.TokenizedPairs, metric: Any, **options: Any) -> Any:
    return attribute_edges(model, pairs, metric, "eap-ig", per_prompt=False, **options)


CALLS: dict[str, tuple[Callable[..., Any], int, int, str]] = {  # call, budget, calls of the metric to survive, result
    "attribute_edges": (attribute_edges, 10**5, 20, "per_prompt"),
    "means": (means, 2 * 10**5, 20, "mean"),
    "patch_edges": (patch_edges, 2 * 10**5, 60, "per_prompt"),
    "keep_top": (top, 10**5, 12, "values"),
    "patch_heads": (patch_heads, 10**5, 12, "values"),
}


class Counting:
    """The logit difference; something happens at its n-th call."""

    def __init__(self, last: int = -1, then: Callable[[], Any] = lambda: None) -> None:
        self.__qualname__ = "Counting"
        self.calls, self.last, self.then = 0, last, then

    def __call__(self, logits: torch.Tensor, pairs: sl.TokenizedPairs) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.last:
            self.then()
        return logit_difference(logits, pairs)


def ask(name: str, metric: Any, out: Path | None, share: float = 1) -> Any:
    call, memory, _, _ = CALLS[name]
    return call(tiny_bridge("gpt2"), make_pairs(), metric, memory=int(share * memory), progress=False, out=out)


@functools.cache
def uninterrupted(name: str) -> tuple[Any, int]:
    """The result, and how often the metric was called."""
    metric = Counting()
    return ask(name, metric, None), metric.calls


def killed(name: str, folder: Path) -> None:
    """Make a call in a process that is killed in the middle."""
    ask(name, Counting(CALLS[name][2], lambda: os.kill(os.getpid(), signal.SIGKILL)), folder)


def test_a_killed_run_goes_on_to_the_same_numbers_bit_by_bit(tmp_path: Path):
    for name in CALLS:
        assert Program(killed, name, tmp_path / name).wait() == -signal.SIGKILL, name
    for name, (_, _, last, result) in CALLS.items():
        rest, again = Counting(), Counting()
        wanted, calls = uninterrupted(name)
        assert calls > last + 3, name  # it was killed in the middle
        found = ask(name, rest, tmp_path / name)
        for part in (result, "clean", "corrupted"):
            assert torch.equal(getattr(found, part), getattr(wanted, part)), (name, part)
        assert rest.calls < calls, name
        assert torch.equal(getattr(ask(name, again, tmp_path / name), result), getattr(wanted, result))
        assert again.calls < rest.calls, name
    assert sorted(tmp_path.iterdir()) == sorted(tmp_path / name for name in CALLS)


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", CALLS)
def test_another_memory_goes_on_to_the_same_numbers(tmp_path: Path, name: str):
    _, _, last, result = CALLS[name]
    with pytest.raises(KeyboardInterrupt):
        ask(name, Counting(last, stop), tmp_path / name)
    again, (wanted, calls) = Counting(), uninterrupted(name)
    found = ask(name, Counting(), tmp_path / name, share=1.5)
    for part in (result, "clean", "corrupted"):
        torch.testing.assert_close(getattr(found, part), getattr(wanted, part), equal_nan=True)
    ask(name, again, tmp_path / name)
    assert again.calls < calls  # what was finished under the first memory is still there


# -- the file


def one(number: int) -> list[torch.Tensor]:
    return [torch.tensor([number])]


def log_of(path: Path | None, model: Any, pairs: sl.TokenizedPairs, metric: Any, **settings: Any) -> BatchLog:
    with open_request(model, pairs, metric) as request:
        return batch_log(path, request, **settings)


def opened(path: Path, **settings: Any) -> BatchLog:
    return log_of(path, tiny_bridge("gpt2"), make_pairs(), logit_difference, **settings)


def refuse() -> Any:
    raise AssertionError("this batch is there already")


def test_a_record_cut_short_is_made_again(tmp_path: Path):
    path = tmp_path / "new" / "log"
    log = opened(path)
    assert not path.exists()
    kept = log.once(one(0), lambda: (torch.tensor([0.1]), torch.tensor(2, dtype=torch.float64)))
    log.once(one(1), lambda: (torch.tensor([0.3]),))
    whole = path.read_bytes()
    for cut in (1, 50, len(whole) - len(whole.split(b"\n", 1)[0]) - 1, len(whole) - 5, len(whole)):
        path.write_bytes(whole[: len(whole) - cut])
        log = opened(path)
        assert log.once(one(1), lambda: (torch.tensor([0.4]),))[0].tolist() == pytest.approx([0.4])
        if cut < 100:
            again = log.once(one(0), refuse)
            assert [(x.dtype, x.tolist()) for x in again] == [(x.dtype, x.tolist()) for x in kept]
        assert opened(path).once(one(1), refuse)[0].tolist() == pytest.approx([0.4])


def test_a_damaged_record_is_made_again(tmp_path: Path):
    path = tmp_path / "log"
    opened(path).once(one(0), lambda: (torch.tensor([1.0]),))
    opened(path).once(one(1), lambda: (torch.tensor([2.0]),))
    whole = path.read_bytes()
    for place in (len(whole) - 1, len(whole) - 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        log = opened(path)
        assert log.once(one(0), refuse)[0].item() == 1
        assert log.once(one(1), lambda: (torch.tensor([2.0]),))[0].item() == 2
        assert opened(path).once(one(1), refuse)[0].item() == 2


def test_a_file_of_another_call_is_refused(tmp_path: Path):
    path = tmp_path / "log"
    opened(path, method="eap", order=torch.tensor([1, 2]), axes=("a", "b")).once(one(0), lambda: (torch.ones(1),))
    opened(path, method="eap", order=torch.tensor([1, 2]), axes=("a", "b")).once(one(0), refuse)
    with pytest.raises(ValueError, match=r"belongs to another call: its method is 'eap', not 'eap-ig'\. Choose"):
        opened(path, method="eap-ig", order=torch.tensor([1, 2]), axes=("a", "b"))
    with pytest.raises(ValueError, match="its order is"):
        opened(path, method="eap", order=torch.tensor([2, 1]), axes=("a", "b"))
    with pytest.raises(ValueError, match="its axes is"):
        opened(path, method="eap", order=torch.tensor([1, 2]))
    call, options = patch_heads, {"progress": False, "out": tmp_path / "heads"}
    call(tiny_bridge("gpt2"), make_pairs(), **options)
    with pytest.raises(ValueError, match="its base is 'clean', not 'corrupted'"):
        call(tiny_bridge("gpt2"), make_pairs(), base="corrupted", ablation="clean", **options)
    with pytest.raises(ValueError, match="its prompts is"):
        call(tiny_bridge("gpt2"), make_pairs(7), **options)
    with pytest.raises(ValueError, match="its model is"):
        call(tiny_bridge("gpt2", seed=1), make_pairs(), **options)
    with pytest.raises(ValueError, match="its gate bias is None, not 0"):
        call(sl.sparsify(tiny_bridge("gpt2"), 0.0), make_pairs(), **options)


def shuffled(model: Any) -> Any:
    weight = model.blocks[0].mlp.out.weight
    weight.data = weight.data.flip(0)
    return model


def test_every_number_of_model_and_prompts_counts(tmp_path: Path):
    options = {"progress": False, "out": tmp_path / "heads"}
    patch_heads(tiny_bridge("gpt2").bfloat16(), make_pairs(), **options)
    with pytest.raises(ValueError, match="its model is"):  # the same numbers, in another dtype
        patch_heads(tiny_bridge("gpt2").bfloat16().float(), make_pairs(), **options)
    opened(tmp_path / "log").once(one(0), lambda: (torch.ones(1),))
    with pytest.raises(ValueError, match="its model is"):
        log_of(tmp_path / "log", shuffled(tiny_bridge("gpt2")), make_pairs(), logit_difference)
    other = replace(make_pairs(), reference=torch.zeros(8, 3))
    with pytest.raises(ValueError, match="its prompts is"):
        log_of(tmp_path / "log", tiny_bridge("gpt2"), other, logit_difference)


def twice(logits: torch.Tensor, pairs: sl.TokenizedPairs) -> torch.Tensor:
    return 2 * logit_difference(logits, pairs)


def test_a_metric_needs_a_name_of_its_own(tmp_path: Path):
    def local(logits: torch.Tensor, pairs: sl.TokenizedPairs) -> torch.Tensor:
        return twice(logits, pairs)

    for metric in (local, lambda logits, pairs: logits, functools.partial(twice), Counting().__call__):
        with pytest.raises(ValueError, match=r"a metric that has a name of its own, not .*: define it with def"):
            log_of(tmp_path / "log", tiny_bridge("gpt2"), make_pairs(), metric)
        log_of(None, tiny_bridge("gpt2"), make_pairs(), metric)
    log_of(tmp_path / "log", tiny_bridge("gpt2"), make_pairs(), twice).once(one(0), lambda: (torch.ones(1),))
    with pytest.raises(ValueError, match=r"its metric is '[\w.]+\.twice', not 'logit_difference'"):
        opened(tmp_path / "log")


def test_a_file_of_something_else_is_left_alone(tmp_path: Path):
    path = tmp_path / "notes"
    for content in ("my notes", "[1, 2]\n", '{"a": 1}\n', "\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"notes (is not a log of batches|belongs to another call)"):
            opened(path)
        assert path.read_text() == content


def test_without_a_file_everything_is_made():
    assert BatchLog().once(one(0), lambda: (torch.ones(1),)) == BatchLog().once(one(0), lambda: (torch.ones(1),))
