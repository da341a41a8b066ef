"""Adapters (LoRA and its like), by peft: put into a model, switched off, merged, written, read.

A model with adapters is a transformers model in which peft has replaced some layers by its own, alone or inside a
PeftModel. Both train, gate and save alike. What is saved are the adapters and the name of their base; what is opened
has them merged into the base's weights, since TransformerLens reads weights as well as running them.
"""

import copy
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sparselens.models.unwrapped import without_peft

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_SAMPLED = 256  # numbers
_SAME = 0.01  # relative difference: half precision rounds by less, four bits by several times more
_PREFIX = "base_model.model."  # peft writes the names that its own wrapping gives


class OtherBaseWarning(UserWarning):
    """Adapters were put on other weights than those that they were trained on."""


def has_adapters(model: nn.Module) -> bool:
    """Has peft put anything into, or around, this model?"""
    return without_peft(model) is not model or bool(_parts(model))


def add_lora(model: PreTrainedModel, rank: int, seed: int = 0) -> PreTrainedModel:
    """Put LoRA of this rank on every linear layer of every attention, in place; all else is frozen.

    At first the adapters add nothing. Their scale is two, as is usual.

    Raises:
        ValueError: the rank is less than 1, the model has adapters already, or no attention in it was found.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    from sparselens.training.trained import attention_layers

    if rank < 1:
        raise ValueError(f"the rank of LoRA must be at least 1, not {rank}")
    if has_adapters(model):
        raise ValueError("the model has adapters already: merge them first (save with merge=True, and load)")
    layers = attention_layers(model)
    linear = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear | Conv1D)}
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=sorted({_ending(name) for name in linear}),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
        task_type="CAUSAL_LM" if type(model).__name__.endswith("ForCausalLM") else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    assert {name for name, part in _parts(model).items() if hasattr(part, "lora_A")} == set(linear)
    return model


def _ending(name: str) -> str:
    """The end of a layer's name from the attention's own on, which is the same in every block: self_attn.q_proj."""
    parts = name.split(".")
    block = max(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[block + 1 :])


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes what its base computes. A model without adapters is left alone."""
    parts = [(part, part._disable_adapters) for part in _parts(model).values()]
    for part, _ in parts:
        part._disable_adapters = True  # peft's own switch, without what it does to requires_grad
    try:
        yield
    finally:
        for part, was in parts:
            part._disable_adapters = was


def trained_besides_adapters(model: nn.Module) -> list[str]:
    """Names of the parameters that are to be trained and belong to no adapter."""
    own = {id(parameter) for part in _parts(model).values() for parameter in _own_parameters(part)}
    network = without_peft(model)
    return [name for name, value in network.named_parameters() if value.requires_grad and id(value) not in own]


def merged(model: nn.Module) -> PreTrainedModel:
    """A copy of the transformers model whose own weights hold what the adapters add."""
    _refuse_prompts(model)
    network = copy.deepcopy(without_peft(model))
    assert isinstance(network, PreTrainedModel)
    return merge(network)


def merge(network: PreTrainedModel) -> PreTrainedModel:
    """Add what the active adapters add to the weights themselves, and take the adapters out, in place."""
    holders = Counter(id(value) for module in network.modules() for value in module._parameters.values())
    for name, part in _parts(network).items():
        _untie(part, holders)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, _whole(part))
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        network.__dict__.pop(attribute, None)
    reading, writing = network.get_input_embeddings(), network.get_output_embeddings()
    if writing is not None and writing.weight is not getattr(reading, "weight", None):
        network.config.get_text_config().tie_word_embeddings = network.config.tie_word_embeddings = False
    return network


def _untie(part: Any, holders: Counter[int]) -> None:
    """Give the layer its own copy of a shared (tied) weight, since what is added belongs to it alone."""
    layer = None if hasattr(part, "original_module") else part.get_base_layer()
    if layer is not None and holders[id(layer.weight)] > 1:
        layer.weight = nn.Parameter(layer.weight.detach().clone(), layer.weight.requires_grad)


def _whole(part: Any) -> nn.Module:
    if hasattr(part, "original_module"):
        return part.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    if not part.disable_adapters and set(part.active_adapters) - set(part.merged_adapters):
        part.merge()
    return part.get_base_layer()


def write_adapter(model: nn.Module, folder: Path, base: str) -> None:
    """Write the active adapter as peft does, with the name of its base.

    Raises:
        ValueError: the folder would not hold all that was trained. The message says what to do.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    _refuse_prompts(model)
    network: Any = without_peft(model)
    others = trained_besides_adapters(model)
    if others:
        raise ValueError(f"besides the adapters {_some(others)} may have been trained: save the whole, with merge=True")
    active = sorted({name for part in _parts(model).values() for name in part.active_adapters})
    if len(active) != 1:
        raise ValueError(f"the active adapters are {', '.join(active) or 'none'}, want one: or save with merge=True")
    config = copy.copy(network.peft_config[active[0]])
    config.base_model_name_or_path, config.inference_mode = base, True
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # a set would be written in another order each time
    # False: to find out by itself whether embeddings belong in the file, peft would ask the hub
    state = get_peft_model_state_dict(network, adapter_name=active[0], save_embedding_layers=False)
    folder.mkdir()
    config.save_pretrained(folder)
    tensors = {f"{_PREFIX}{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def base_of(folder: Path) -> str:
    """The name of the model whose adapters a folder holds.

    Raises:
        ValueError: the folder does not say.
    """
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} does not name the model that its adapters belong to") from error
    if not isinstance(base, str) or not base:
        raise ValueError(f"{folder / CONFIG} has {base!r} as base_model_name_or_path: pass base=FOLDER_OR_ID")
    return base


def base_sample(model: nn.Module) -> list[float]:
    """A few hundred of the weights that the adapters were put on, evenly spaced: by them the base is known again.

    A name says little: the same hub id may be opened dequantised from four bits, or in its original precision.
    """
    bases = [part.get_base_layer() for part in _parts(model).values() if hasattr(part, "get_base_layer")]
    weights = [base.weight.detach().flatten() for base in bases]
    each = -(-_SAMPLED // max(1, len(weights)))
    return [round(float(x), 6) for weight in weights for x in weight[:: -(-len(weight) // each)]]


def put_adapter(network: PreTrainedModel, folder: Path, trained_on: list[float] | None = None) -> PreTrainedModel:
    """Read the adapters in a folder and merge them into their base, in place.

    Args:
        trained_on: the `base_sample` of the base that the adapters were trained on. Another base is warned of

    Raises:
        ValueError: the file is not whole, or the base asks for other tensors than it holds.
    """
    from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    from sparselens.models.weights import read_tensors

    # merged in the base's precision, whatever the file's
    state = {name.removeprefix(_PREFIX): x.to(network.dtype) for name, x in read_tensors(folder / WEIGHTS).items()}
    try:
        config = PeftConfig.from_pretrained(str(folder))
        inject_adapter_in_model(config, network, low_cpu_mem_usage=True)  # nothing is drawn at random
        wanted = get_peft_model_state_dict(network, adapter_name="default", save_embedding_layers=False)
        for what, names in (("lacks", wanted.keys() - state.keys()), ("also has", state.keys() - wanted.keys())):
            if names:
                raise ValueError(f"{WEIGHTS} {what} {_some(sorted(names))}")
        set_peft_model_state_dict(network, state, low_cpu_mem_usage=True)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"the adapters in {folder} do not fit {network.config._name_or_path}: {error}") from error
    if trained_on is not None:
        _warn_of_other_base(base_sample(network), trained_on, folder)
    return merge(network)


def _warn_of_other_base(found: list[float], wanted: list[float], folder: Path) -> None:
    off = 1.0
    if len(found) == len(wanted):
        off = math.dist(found, wanted) / max(math.hypot(*wanted), 1e-12)
    if off > _SAME:
        warnings.warn(
            f"the adapters in {folder} were trained on other weights: those of this base differ by {off:.1%} (another "
            "quantisation?). Loss and open edges may not be those on record; base=... names the base to use",
            OtherBaseWarning,
            stacklevel=5,
        )


def _parts(model: nn.Module) -> dict[str, Any]:
    """The layers with which peft has replaced the model's, by name."""
    if "peft" not in sys.modules:  # then nothing of it can be in the model
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {name: part for name, part in without_peft(model).named_modules() if isinstance(part, kinds)}


def _own_parameters(part: Any) -> Iterator[nn.Parameter]:
    replaced = part.original_module if hasattr(part, "original_module") else part.get_base_layer()
    base = {id(parameter) for parameter in replaced.parameters()}
    return (parameter for parameter in part.parameters() if id(parameter) not in base)


def _refuse_prompts(model: nn.Module) -> None:
    if not _parts(model):
        raise ValueError("peft has put nothing into this model's layers (prompt tuning?): want adapters such as LoRA")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
