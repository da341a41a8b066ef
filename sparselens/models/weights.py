"""Opens the weights of a model folder: whole files, no pickle, nothing outside the folder, no weight left to chance."""

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

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SHOWN = 5  # names of weights in a message


def open_weights(path: Path, name: str, gguf_file: str | None, options: dict[str, Any]) -> PreTrainedModel:
    """The transformers model in a folder, with every weight from its files.

    Args:
        name: what the caller calls the folder, for messages
        gguf_file: a file in `path` to read instead; its weights come as float32 unless `options` say otherwise

    Raises:
        ValueError: the folder holds no model that can be opened whole and safely. Says why and what would do.
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
    except RuntimeError as error:  # transformers' word for tensors of other shapes
        raise ValueError(f"the weights of {name} do not fit its config.json: {error}") from error
    model, found = loaded
    _check_names(name, found)
    if gguf_file is not None:
        _forget_quantisation(model)
    return model


@contextmanager
def without_bar() -> Iterator[None]:
    """Without transformers' progress bars, which do not say what is read or written."""
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
        ValueError: config.json is damaged, or is about an architecture that only code from the repository knows.
    """
    try:
        written = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'} is not JSON: {error}") from error
    if "auto_map" in written and written.get("model_type") not in transformers.CONFIG_MAPPING:
        raise ValueError(f"{path} needs code of its own to be opened (auto_map in config.json), which is never run")
    return AutoConfig.from_pretrained(path, trust_remote_code=False)


def _architecture(config: Any, name: str) -> Any:
    architecture = (config.architectures or ["none"])[0]
    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise ValueError(f"{name}: transformers {transformers.__version__} has no architecture {architecture!r}")
    return kind


def _check_files(path: Path) -> None:
    for file in _files(path):
        if not file.exists():
            raise ValueError(f"{path / _INDEX} names {file.name}, which is not there: copy or download it again")
        _open(file)


def _files(path: Path) -> list[Path]:
    if (path / _SINGLE).exists():
        return [path / _SINGLE]
    if (path / _INDEX).exists():
        return [path / name for name in _indexed(path / _INDEX)]
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ValueError(
            f"{path} holds its weights as a pickle only ({pickles[0]}), which can run code when it is read: get the "
            "safetensors files, or convert it where you trust it (from_pretrained, then save_pretrained)"
        )
    raise ValueError(f"{path} holds no weights: want {_SINGLE}")


def _indexed(index: Path) -> list[str]:
    """The files that an index names, each in its own folder."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights ({error!r})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or ":" in name:
            raise ValueError(f"{index} names {name!r}, which is outside its folder: it is damaged or made to deceive")
    return names


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file.

    Raises:
        ValueError: the file is missing, cut short or damaged.
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
        raise ValueError(f"{file} is cut short or damaged ({error}): copy or download it again") from error


def _check_names(name: str, found: dict[str, Any]) -> None:
    """A weight that the files lack would be drawn at random, and the model be studied like that."""
    if found["missing_keys"]:
        raise ValueError(f"{name} lacks weights of its architecture: {_some(found['missing_keys'])}")
    if found["unexpected_keys"]:
        warnings.warn(
            f"{name} has weights that its architecture does not use: {_some(found['unexpected_keys'])}", stacklevel=2
        )


def _some(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _check_gguf(file: Path) -> None:
    if not file.exists():
        raise ValueError(f"no such file: {file}")
    gguf_reader(file)


def gguf_reader(file: Path) -> Any:
    """What is written in a GGUF file.

    Raises:
        ImportError: the package that reads such files is not installed.
        ValueError: the file is cut short or damaged.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("GGUF files are read with the gguf package: pip install gguf")
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{file} is cut short or no GGUF file ({error}): copy or download it again") from error


def _forget_quantisation(model: PreTrainedModel) -> None:
    """The weights are plain floats now; a model that is still called quantised cannot be trained or saved."""
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(attribute, None)
    model.config.__dict__.pop("quantization_config", None)
