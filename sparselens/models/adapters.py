"""Adapters made by peft (such as LoRA): adding, switching off, merging, saving and loading.

A model with adapters is a transformers model, or a PeftModel around one, in which peft has replaced some layers by its
own. Both kinds train, gate and save alike. Saving writes only the adapters and the name of their base model; loading
merges them into the base's weights, since TransformerLens also reads weights directly.
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

from sparselens.models.copies import copied
from sparselens.models.unwrapped import without_peft
from sparselens.names import first_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_SAMPLED = 256  # weights
_SAME = 0.01  # largest relative difference; half precision rounds by less, 4-bit quantisation by several times more
_PREFIX = "base_model.model."  # peft writes parameter names with the prefix of its own wrapper


class OtherBaseWarning(UserWarning):
    """Adapters were merged into weights that differ from those they were trained on."""


def has_adapters(model: nn.Module) -> bool:
    """Whether this is a PeftModel, or peft has replaced any of its layers."""
    return without_peft(model) is not model or bool(_parts(model))


def add_lora(model: PreTrainedModel, rank: int, seed: int = 0) -> PreTrainedModel:
    """Add LoRA of this rank to every linear layer of every attention, in place, and freeze all other parameters.

    The adapters start as zero, so the model's output is unchanged. Their scale (alpha / rank) is 2, as is usual.

    Raises:
        ValueError: the rank is less than 1, the model already has adapters, or no attention was found in it.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    from sparselens.training.trained import attention_layers

    if rank < 1:
        raise ValueError(f"the rank of LoRA must be at least 1, not {rank}")
    if has_adapters(model):
        raise ValueError("the model already has adapters: merge them first (save with merge=True, then load)")
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
    """The part of a layer's name after the block's number, the same in every block: self_attn.q_proj."""
    parts = name.split(".")
    block = max(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[block + 1 :])


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside the block the model computes what its base computes. No effect on a model without adapters."""
    parts = [(part, part._disable_adapters) for part in _parts(model).values()]
    for part, _ in parts:
        part._disable_adapters = True  # not peft's enable_adapters, which also changes requires_grad
    try:
        yield
    finally:
        for part, was in parts:
            part._disable_adapters = was


def trained_besides_adapters(model: nn.Module) -> list[str]:
    """Names of the trainable parameters that do not belong to an adapter."""
    own = {id(parameter) for part in _parts(model).values() for parameter in _own_parameters(part)}
    network = without_peft(model)
    return [name for name, value in network.named_parameters() if value.requires_grad and id(value) not in own]


def merged(model: nn.Module) -> PreTrainedModel:
    """A copy of the transformers model with the adapters merged into its weights."""
    _refuse_prompts(model)
    network = copied(without_peft(model))
    assert isinstance(network, PreTrainedModel)
    return merge(network)


def merge(network: PreTrainedModel) -> PreTrainedModel:
    """Merge the active adapters into the weights and remove all adapters, in place."""
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
    """Give the layer its own copy of a tied weight: its adapter must not change the layers that share it."""
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
    """Write the active adapter as peft does, with the name of its base model.

    Raises:
        ValueError: the adapter is not all that was trained. The message says what to do.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    _refuse_prompts(model)
    network: Any = without_peft(model)
    others = trained_besides_adapters(model)
    if others:
        raise ValueError(
            f"parameters outside the adapters may have been trained ({first_of(others)}): save the whole model, with "
            "merge=True"
        )
    active = sorted({name for part in _parts(model).values() for name in part.active_adapters})
    if len(active) != 1:
        raise ValueError(
            f"exactly one adapter must be active, not {', '.join(active) or 'none'}: activate one, or save with "
            "merge=True"
        )
    config = copy.copy(network.peft_config[active[0]])
    config.base_model_name_or_path, config.inference_mode = base, True
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # a set would be written in a different order each time
    # False, since to decide whether embeddings belong in the file peft would query the hub
    state = get_peft_model_state_dict(network, adapter_name=active[0], save_embedding_layers=False)
    folder.mkdir()
    config.save_pretrained(folder)
    tensors = {f"{_PREFIX}{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def base_of(folder: Path) -> str:
    """The folder or hub id of the model that the adapters in a folder belong to.

    Raises:
        ValueError: the folder does not name it.
    """
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} does not name the model that its adapters belong to") from error
    if not isinstance(base, str) or not base:
        raise ValueError(f"{folder / CONFIG} has {base!r} as base_model_name_or_path: pass base=FOLDER_OR_ID")
    return base


def base_sample(model: nn.Module) -> list[float]:
    """A few hundred evenly spaced weights of the base model, by which it can be recognised.

    Its name is not enough: the same hub id may be opened dequantised from four bits, or in its original precision.
    """
    bases = [part.get_base_layer() for part in _parts(model).values() if hasattr(part, "get_base_layer")]
    weights = [base.weight.detach().flatten() for base in bases]
    each = -(-_SAMPLED // max(1, len(weights)))
    return [round(float(x), 6) for weight in weights for x in weight[:: -(-len(weight) // each)]]


def put_adapter(network: PreTrainedModel, folder: Path, trained_on: list[float] | None = None) -> PreTrainedModel:
    """Read the adapters in a folder and merge them into their base model, in place.

    Args:
        trained_on: the `base_sample` of the model that the adapters were trained on; a warning says if it differs

    Raises:
        ValueError: the file is damaged, or its tensors are not those that the base model needs.
    """
    from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

    from sparselens.models.weights import read_tensors

    # merge in the precision of the base, whatever that of the file
    state = {name.removeprefix(_PREFIX): x.to(network.dtype) for name, x in read_tensors(folder / WEIGHTS).items()}
    try:
        config = PeftConfig.from_pretrained(str(folder))
        inject_adapter_in_model(config, network, low_cpu_mem_usage=True)  # without random initialisation
        wanted = get_peft_model_state_dict(network, adapter_name="default", save_embedding_layers=False)
        for what, names in (("lacks", wanted.keys() - state.keys()), ("also has", state.keys() - wanted.keys())):
            if names:
                raise ValueError(f"{WEIGHTS} {what} {first_of(sorted(names))}")
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
            f"the adapters in {folder} were trained on other weights: those of this base model differ by {off:.1%} "
            "(different quantisation?). Loss and open edges may differ from the recorded ones; choose the base model "
            "with base=...",
            OtherBaseWarning,
            stacklevel=5,
        )


def _parts(model: nn.Module) -> dict[str, Any]:
    """The layers that peft has put in place of the model's own, by name."""
    if "peft" not in sys.modules:  # then the model cannot contain any
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
        raise ValueError(
            "peft has not replaced any layer of this model (is it prompt tuning?): only adapters such as LoRA work"
        )
