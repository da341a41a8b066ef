"""Set up Accelerate for post-training; gather and shard the tensors of FSDP.

Checkpoints hold whole tensors, so that a run can resume with any number of processes, with or without FSDP. We avoid
the sharded files of torch.distributed.checkpoint, since reading them unpickles their index.
"""

from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils._pytree import tree_map


def accelerator_for(mixed_precision: str) -> Accelerator:
    """An accelerator for the launched processes, with the given precision ("no", "bf16" or "fp16").

    Accelerate normally refuses to change the precision within a program. Here, runs follow one another, so its state is
    reset.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    # bridges that split a fused QKV weight keep the fused weight, which gets no gradient
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[unused])


def is_sharded(value: Tensor) -> bool:
    """Whether this process holds only a part of the tensor."""
    return hasattr(value, "full_tensor")  # that is, a DTensor, which is slow to import


def whole(tree: Any, keep: bool = True) -> Any:
    """Gather the sharded tensors of a tree in CPU memory; everything else stays as it is.

    Args:
        tree: nested dictionaries, lists and tuples of tensors and other values
        keep: False in processes that only take part in gathering; they get None for each sharded tensor
    """

    def gather(value: Any) -> Any:
        if not isinstance(value, Tensor) or not is_sharded(value):
            return value
        full: Tensor = value.full_tensor()  # type: ignore[attr-defined]
        return full.cpu() if keep else None

    return tree_map(gather, tree)


def sharded_like(value: Tensor, full: Tensor) -> Tensor:
    """Shard a whole tensor, which every process holds, in the same way as `value`."""
    if not is_sharded(value) or is_sharded(full):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(value, DTensor)
    mesh = value.device_mesh
    return distribute_tensor(full.to(mesh.device_type), mesh, value.placements, src_data_rank=None)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a gathered optimiser state, saved with any number of processes."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {
            name: sharded_like(parameters[number], value) if value.shape == parameters[number].shape else value
            for name, value in held.items()
        }
        for number, held in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
