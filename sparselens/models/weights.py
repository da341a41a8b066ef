"""Opens the weights of a model folder safely: complete files, no pickle, no path outside it, no random weights."""

import importlib.util
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from sparselens.names import first_of

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SHOWN = 5  # names of weights in a message


def open_weights(path: Path, name: str, gguf_file: str | None, options: dict[str, Any]) -> PreTrainedModel:
    """The transformers model in a folder, with every weight read from its files.

    Args:
        name: the user's name for the folder, for error messages
        gguf_file: a file in `path` to read instead; its weights become float32 unless `options` say otherwise

    Raises:
        ValueError: the model in the folder is incomplete or cannot be opened safely. The message says why.
    """
    if options.get("trust_remote_code"):
        raise ValueError("trust_remote_code=True: sparselens runs no code from a model's repository")
    options = {"attn_implementation": "eager", "trust_remote_code": False} | options
    if gguf_file is None:
        _check_files(path)
        config = read_config(path)
        options |= {"config": config, "use_safetensors": True}
        kind = _architecture(config, name)
    else:
        _check_gguf(path / gguf_file)
        options = {"dtype": torch.float32} | options | {"gguf_file": gguf_file}
        kind = AutoModelForCausalLM
    try:
        with without_bar():
            loaded: Any = kind.from_pretrained(path, output_loading_info=True, **options)
    except RuntimeError as error:  # raised by transformers if shapes differ
        raise ValueError(f"the weights of {name} do not fit its config.json: {error}") from error
    model, found = loaded
    _check_names(name, found)
    if gguf_file is not None:
        _forget_quantisation(model)
    return model


@contextmanager
def without_bar() -> Iterator[None]:
    """Hide transformers' progress bars, which do not say what is read or written."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_config(path: Path) -> Any:
    """The transformers config of a folder.

    Raises:
        ValueError: config.json is damaged, or its architecture is defined by code in the repository.
    """
    try:
        written = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'} is not JSON: {error}") from error
    if "auto_map" in written and written.get("model_type") not in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"{path} can only be opened with code from its repository (auto_map in config.json), which is never run"
        )
    return AutoConfig.from_pretrained(path, trust_remote_code=False)


def _architecture(config: Any, name: str) -> Any:
    architecture = (config.architectures or ["none"])[0]
    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise ValueError(f"{name}: no architecture {architecture!r} in transformers {transformers.__version__}")
    return kind


def _check_files(path: Path) -> None:
    for file in _files(path):
        if not file.exists():
            raise ValueError(f"{path / _INDEX} names {file.name}, which is missing: copy or download it again")
        _open(file)


def _files(path: Path) -> list[Path]:
    if (path / _SINGLE).exists():
        return [path / _SINGLE]
    if (path / _INDEX).exists():
        return [path / name for name in _indexed(path / _INDEX)]
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ValueError(
            f"{path} holds its weights only as a pickle ({pickles[0]}), which can run code when it is read: get the "
            "safetensors files, or, if you trust it, convert it (from_pretrained, then save_pretrained)"
        )
    raise ValueError(f"{path} holds no weights: want {_SINGLE}")


def _indexed(index: Path) -> list[str]:
    """The files that an index names, each directly in the folder of the index."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a valid index of weights ({error!r})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or ":" in name:
            raise ValueError(f"{index} names {name!r}, which is outside its folder: it is damaged or malicious")
    return names


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file.

    Raises:
        ValueError: the file is missing, truncated or damaged.
    """
    if not file.exists():
        raise ValueError(f"{file.parent} holds no {file.name}")
    opened = _open(file)
    return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, "pt")  # type: ignore[no-untyped-call]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated or damaged ({error}): copy or download it again") from error


def _check_names(name: str, found: dict[str, Any]) -> None:
    """Refuse missing weights, which transformers would initialise at random; warn of unused ones."""
    missing, unused = (first_of(sorted(found[f"{kind}_keys"]), _SHOWN) for kind in ("missing", "unexpected"))
    if missing:
        raise ValueError(f"{name} lacks weights that its architecture needs: {missing}")
    if unused:
        warnings.warn(f"{name} has weights that its architecture does not use: {unused}", stacklevel=2)


def _check_gguf(file: Path) -> None:
    if not file.exists():
        raise ValueError(f"no such file: {file}")
    gguf_reader(file)


def gguf_reader(file: Path) -> Any:
    """A reader of a GGUF file.

    Raises:
        ImportError: the gguf package is not installed.
        ValueError: the file is truncated or damaged.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("reading GGUF files needs the gguf package: pip install gguf")
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{file} is truncated or not a GGUF file ({error}): copy or download it again") from error


def _forget_quantisation(model: PreTrainedModel) -> None:
    """Remove the quantisation marks: the weights are plain floats now, and marked models cannot be trained or saved."""
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(attribute, None)
    model.config.__dict__.pop("quantization_config", None)
