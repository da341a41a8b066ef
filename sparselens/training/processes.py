"""Accelerate, set up as post-training needs it, and tensors that FSDP shares out among processes.

A checkpoint holds whole tensors, so that a run goes on in any number of processes, with FSDP or without. The files of
torch.distributed.checkpoint would be written in shards, but reading them unpickles their index.
"""

from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils._pytree import tree_map


def accelerator_for(mixed_precision: str) -> Accelerator:
    """One process or several, as the program was launched, with the given precision ("no", "bf16" or "fp16").

    Accelerate keeps one precision for the whole program and refuses another; runs come one after the other here, so the
    new one is set.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    # bridges that split a fused QKV weight keep the fused one, without a gradient
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[unused])


def is_sharded(value: Tensor) -> bool:
    """Does this process hold only a part of the tensor?"""
    return hasattr(value, "full_tensor")  # DTensor, whose import takes a while


def whole(tree: Any, keep: bool = True) -> Any:
    """Gather the sharded tensors of a tree, in main memory; others stay as they are.

    Args:
        tree: tensors and anything else, in dictionaries, lists and tuples
        keep: False in processes that only help to gather them; they get None in place of each
    """

    def gather(value: Any) -> Any:
        if not isinstance(value, Tensor) or not is_sharded(value):
            return value
        full: Tensor = value.full_tensor()  # type: ignore[attr-defined]
        return full.cpu() if keep else None

    return tree_map(gather, tree)


def sharded_like(value: Tensor, full: Tensor) -> Tensor:
    """A whole tensor, which every process has, sharded as `value` is."""
    if not is_sharded(value) or is_sharded(full):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(value, DTensor)
    mesh = value.device_mesh
    return distribute_tensor(full.to(mesh.device_type), mesh, value.placements, src_data_rank=None)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser the whole state that another had, in one process or in any number of them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {
            name: sharded_like(parameters[number], value) if value.shape == parameters[number].shape else value
            for name, value in held.items()
        }
        for number, held in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
