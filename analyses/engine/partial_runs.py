"""Runs a model under hooks, and only the part of it that a patch can change.

1. Blocks before the patched one are skipped: a stand-in returns the residual stream of an earlier run.
2. If the patch does not change that stream, the patched block's queries, keys and values are reused as well.
3. After the last attention layer, positions no longer mix, so the last MLP and the unembedding run only at the answer's
   position.
The model still makes its own masks, positions and norms for the batch that runs, so nothing is assumed about them.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Result = TypeVar("Result")
Activations = dict[str, Tensor]  # by the name of the hook point
Hook = tuple[str, Callable[[Tensor], Tensor | None]]  # name of a hook point or module; returns a replacement or None


def run(
    model: Any, tokens: Int[Tensor, "batch pos"], hooks: Sequence[Hook] = (), **options: Any
) -> Float[Tensor, "batch out_pos d_vocab"]:
    """Logits of a TransformerBridge or HookedTransformer under hooks, without caching keys and values for generation.

    A name that is not a hook point is that of a module, and its first input is hooked: HookedTransformer has no hook
    point for the input of an MLP.

    Args:
        options: passed to the model's forward, such as a cache of keys and values
    """
    options = ({"use_cache": False} if hasattr(model, "original_model") else {}) | options
    known = model.hook_dict if hooks else ()  # a TransformerBridge rebuilds it at every access
    points: list[tuple[str, Callable[..., Any]]] = []
    with ExitStack() as stack:
        for name, call in hooks:
            if name in known:
                points.append((name, partial(_without_point, call)))
            else:
                before = model.get_submodule(name).register_forward_pre_hook(partial(_replace_first, call))
                stack.callback(before.remove)
        return model.run_with_hooks(tokens, fwd_hooks=points, **options)


def _without_point(call: Callable[[Tensor], Tensor | None], activation: Tensor, **_: Any) -> Tensor | None:
    return call(activation)


def _replace_first(call: Callable[[Tensor], Tensor | None], _module: Any, args: tuple[Any, ...]) -> Any:
    changed = call(args[0])
    return None if changed is None else (changed, *args[1:])


def recording(recorded: Activations, names: Sequence[str], prompts: Int[Tensor, " batch"] | None = None) -> list[Hook]:
    """Hooks that copy activations into `recorded`; copies, since some model families add to them in place later.

    Args:
        prompts: indices of the prompts, with which an activation that is not finite is reported
    """

    def record(name: str, activation: Tensor) -> None:
        if prompts is not None:
            refuse_unless_finite(name, activation, prompts)
        recorded[name] = activation.detach().clone()

    return [(name, partial(record, name)) for name in dict.fromkeys(names)]


def refuse_unless_finite(what: str, values: Float[Tensor, "batch *axes"], prompts: Int[Tensor, " batch"]) -> None:
    """Raise a ValueError that names the first prompt with a value that is not finite."""
    if not bool(values.isfinite().all()):
        bad = (~values.isfinite()).reshape(len(values), -1).any(1)
        raise ValueError(f"{what} is not finite in prompt {int(prompts[int(bad.nonzero()[0])])}")


def returns_tuple(model: Any, tokens: Int[Tensor, "batch pos"]) -> bool:
    """Whether the model's blocks return a tuple, which depends on the family."""
    seen: list[bool] = []
    handle = model.blocks[0].register_forward_hook(lambda _block, _args, out: seen.append(isinstance(out, tuple)))
    try:
        run(model, tokens)
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def starting_at(model: Any, layer: int, residual: Float[Tensor, "batch pos d_model"], as_tuple: bool) -> Iterator[None]:
    """Inside, block `layer` reads `residual`, whatever the tokens are, and earlier blocks do not run.

    Args:
        as_tuple: whether the blocks return tuples (`returns_tuple`)
    """
    with skipping(model, dict.fromkeys(range(layer), lambda: residual), as_tuple):
        yield


@contextmanager
def skipping(
    model: Any, blocks: Mapping[int, Callable[[], Float[Tensor, "batch pos d_model"]]], as_tuple: bool
) -> Iterator[None]:
    """Inside, these blocks do not run: each returns the result of its callable.

    Args:
        as_tuple: whether the blocks return tuples (`returns_tuple`)
    """

    def call(give: Callable[[], Tensor]) -> Any:
        return (give(),) if as_tuple else give()

    with _standing_in(
        {model.blocks[layer]: _ignoring_arguments(partial(call, give)) for layer, give in blocks.items()}
    ):
        yield


Projections = dict[nn.Module, Float[Tensor, "batch pos features"]]


@contextmanager
def keeping_projections(model: Any) -> Iterator[list[Projections]]:
    """Record the outputs of the modules that compute queries, keys and values, layer by layer.

    Stays empty where there are no such modules (HookedTransformer), or where their output has another shape.
    """
    kept: list[Projections] = [{} for _ in model.blocks]

    def keep(layer: int, module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 3:
            kept[layer][module] = output.detach().clone()

    with ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            for inner in _projections(block, "qkv"):
                stack.callback(inner.register_forward_hook(partial(keep, layer)).remove)
        yield kept


@contextmanager
def holding(projections: Projections, rows: Int[Tensor, " row"]) -> Iterator[None]:
    """Inside, these modules return their recorded outputs for the prompts in `rows`, whatever their input is."""
    calls = {module: _ignoring_arguments(partial(_rows_of, values, rows)) for module, values in projections.items()}
    with _standing_in(calls):
        yield


def _rows_of(values: Tensor, rows: Tensor) -> Tensor:
    return values[rows.to(values.device)]


@contextmanager
def silent_projections(model: Any) -> Iterator[None]:
    """Inside, the query, key, value and output projections of attention return zeros, without computing.

    For runs whose hooks replace all of these. Projections that are not linear layers run as usual.
    """
    linear = [
        inner for block in model.blocks for inner in _projections(block, "qkvo") if hasattr(inner, "out_features")
    ]
    with _standing_in({module: partial(_zeros, module.out_features) for module in linear}):
        yield


def _zeros(features: int, x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], features)


def _projections(block: Any, names: str) -> list[Any]:
    """The model's own modules that TransformerLens wraps under these names; none in a HookedTransformer."""
    inside = (getattr(block.attn._modules.get(name), "original_component", None) for name in names)
    return [inner for inner in inside if inner is not None]


@contextmanager
def _standing_in(calls: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside, a callable replaces the forward of each module."""
    before = {module: module.__dict__.get("forward") for module in calls}  # accelerate, for example, sets one
    try:
        for module, call in calls.items():
            module.__dict__["forward"] = call
        yield
    finally:
        for module, forward in before.items():
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def _ignoring_arguments(call: Callable[[], Any]) -> Callable[..., Any]:
    """The same call, ignoring any arguments."""
    return lambda *_, **__: call()


@contextmanager
def only_at(model: Any, end: Int[Tensor, " batch"], n_pos: int, trim_mlp: bool = True) -> Iterator[None]:
    """Inside, logits are computed at one position per prompt, with shape `batch 1 d_vocab`.

    Args:
        trim_mlp: also run the last MLP at this position only; must be False while its output is recorded or patched
    """
    handles = [model.unembed.register_forward_pre_hook(partial(_pick, end))]
    last_mlp = model.blocks[-1]._modules.get("mlp")
    if trim_mlp and last_mlp is not None:
        handles.append(last_mlp.register_forward_pre_hook(partial(_pick, end)))
        handles.append(last_mlp.register_forward_hook(partial(_spread, n_pos)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pick(end: Tensor, _module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Every input at the chosen position only; some families also pass the residual stream to the MLP."""
    rows = torch.arange(len(end))
    return tree_map(lambda x: x[rows.to(x.device), end.to(x.device)][:, None] if isinstance(x, Tensor) else x, args)


def _spread(n_pos: int, _module: Any, _args: Any, output: Any) -> Any:
    """Repeat the output at all positions, of which one is read; a copy, since some families add to it in place."""
    return tree_map(lambda x: x.repeat(1, n_pos, 1) if x.ndim == 3 and x.shape[1] == 1 else x, output)


class _Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that are created inside the block and alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        # Weak references, not addresses: a new tensor may get the address of one that was freed.
        self._known = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._known.update(_storages((args, kwargs)))  # parameters and inputs, of which an output may be a view
        output = func(*args, **(kwargs or {}))
        for storage in _storages(output):
            if storage not in self._known:
                self._known.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return output

    def _count(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_bytes(call: Callable[[], Result]) -> tuple[Result, int]:
    """The result of `call`, and the peak memory of the tensors it created, in bytes over all devices."""
    with _Allocations() as allocations:
        result = call()
        return result, allocations.peak
