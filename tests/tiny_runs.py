"""Tiny post-training runs, also as a program of their own: to be killed, or to be one of several processes.

The program takes a list of runs, which follow each other.
"""

import json
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sparselens as sl
from sparselens.training.losses import IGNORED
from tests.tiny_models import VOCABULARY, tiny_bridge, tiny_model

LENGTH = 8


def counting_rows(index: int, rows: int = 4) -> Tensor:
    """Rows that count upwards from a random token: quickly learnt, and a different batch for every index."""
    start = torch.randint(1, VOCABULARY, (rows, 1), generator=torch.Generator().manual_seed(index))
    return (start + torch.arange(LENGTH)) % VOCABULARY


def ragged_rows(index: int, hidden_by: str = "labels") -> dict[str, Tensor]:
    """The same, but most rows are shorter, by padding or by labels that do not count; the first ones are shortest."""
    tokens = counting_rows(index)
    counted = torch.arange(LENGTH) < torch.tensor([[3], [5], [7], [8]])
    if hidden_by == "labels":
        return {"input_ids": tokens, "labels": tokens.masked_fill(~counted, IGNORED)}
    return {"input_ids": tokens, "attention_mask": counted.long()}


HELD_OUT = [counting_rows(10_000 + i) for i in range(2)]
THREE = [counting_rows(20_000 + i) for i in range(3)]  # batches: not to be split evenly over two processes


def gated(kind: str = "transformers", family: str = "gpt2", **options: Any) -> Any:
    """A tiny gated model of either way."""
    return sl.sparsify({"transformers": tiny_model, "bridge": tiny_bridge}[kind](family, **options), gate_bias=2.0)


def settings(**options: Any) -> sl.PostTrainConfig:
    """A run of a few steps in which everything happens."""
    few = {"steps": 12, "warmup": 1, "learning_rate": 1e-2, "evaluate_every": 4, "checkpoint_every": 4}
    few |= {"control_steps": 0, "noise_temperature": 1.0, "allowance": 0.0}
    return sl.PostTrainConfig(**(few | options))


def run(model: Any, *, out: Path | None = None, resume: bool = False, **options: Any) -> sl.PostTrainResult:
    """Post-train on rows that count."""
    more = {
        name: options.pop(name) for name in ("loss", "accelerator", "held_out", "batches", "finish") if name in options
    }
    data = {"batches": counting_rows, "held_out": HELD_OUT} | more
    return sl.post_train(model, config=settings(**options), out=out, resume=resume, progress=False, **data)


def trained() -> Any:
    """A model that has learnt to count, so that a wild optimiser has something to wreck."""
    model = gated("transformers", "llama")
    model.load_state_dict(_learnt())
    return model


@cache
def _learnt() -> dict[str, Tensor]:
    model = gated("transformers", "llama")
    run(model, target=0.0, multiplier=1e4, steps=150, evaluate_every=50)
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_histories_close(
    one: list[dict[str, Any]], other: list[dict[str, Any]], rel: float, by: float = 1e-12
) -> None:
    """Two runs went the same way: every number differs by no more than that share of it, or than `by`."""
    assert [record.get("event") for record in one] == [record.get("event") for record in other]
    numbers = ([{k: v for k, v in record.items() if k != "event"} for record in run] for run in (one, other))
    torch.testing.assert_close(*numbers, rtol=rel, atol=by)


def sharding_accelerator() -> Any:
    """FSDP2 on CPUs, which accelerate would do without: it shards on accelerators only, and must be told otherwise."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    accelerator = Accelerator(cpu=True)
    AcceleratorState._shared_state |= {
        "distributed_type": DistributedType.FSDP,
        "fsdp_plugin": FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
            cpu_ram_efficient_loading=False,
        ),
    }
    return accelerator


class _StopError(Exception):
    """The run was broken off."""


def _until(last: int, index: int) -> Tensor:
    if index == last:
        raise _StopError
    return counting_rows(index)


def _check_saved_model(model: Any, weights: dict[str, Tensor], given: dict[str, Any], main: bool) -> None:
    from sparselens.gates.surgery import gate_settings
    from sparselens.training.trained import in_one_piece

    saved = in_one_piece(model, lambda: tiny_model(given["family"]), main)
    assert (saved is model) == (not main)
    if main:
        assert all(torch.equal(value, weights[name]) for name, value in saved.state_dict().items())
        assert gate_settings(saved).gate_bias == 2.0


def _run_command(words: list[str]) -> None:
    """The whole command line, in processes that share one model."""
    from sparselens.cli import build_app
    from sparselens.training import processes

    processes.accelerator_for = lambda mixed_precision: sharding_accelerator()
    build_app()(words, standalone_mode=False)


def _run_given(given: dict[str, Any]) -> None:
    if "command" in given:
        return _run_command(given["command"])
    model = gated(given["kind"], given["family"], **given.get("model", {}))
    if "pause" in given:  # gives the one who kills this program time to choose the moment
        import time

        from sparselens.training.losses import next_token_loss

        def slow_loss(logits: Tensor, batch: Tensor) -> Tensor:
            time.sleep(given["pause"])
            return next_token_loss(logits, batch)

        given["options"]["loss"] = slow_loss
    if "hidden_by" in given:
        given["options"]["batches"] = partial(ragged_rows, hidden_by=given["hidden_by"])
    if given.get("fsdp"):
        given["options"]["accelerator"], given["options"]["held_out"] = sharding_accelerator(), THREE
    if "stop_at" in given:
        given["options"]["batches"] = partial(_until, given["stop_at"])
    try:
        result = run(model, out=Path(given["out"]), resume=given.get("resume", False), **given["options"])
    except _StopError:
        return None
    import os

    rank = os.environ.get("RANK", "0")
    weights = {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in model.state_dict().items()}
    if given.get("fsdp"):
        _check_saved_model(model, weights, given, main=rank == "0")
    torch.save({"model": weights, "history": result.history}, Path(given["out"]) / f"result-{rank}.pt")
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    for _given in json.loads(sys.argv[1]):
        _run_given(_given)
