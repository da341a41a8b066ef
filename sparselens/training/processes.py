"""Accelerate, set up as post-training needs it."""

from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState


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
