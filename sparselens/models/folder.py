"""Saves a model as an ordinary transformers folder that also records its gates, and opens such folders.

- `config.json`, `model.safetensors`, tokenizer files, as written by transformers
- or, for a model with adapters, `adapter_config.json` and `adapter_model.safetensors`, as written by peft
- `sparselens.json`: base model, gate bias, target, losses, share of open edges, command
- `README.md`: the model card
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from sparselens.files.whole import same_readers, whole_folder, write_json
from sparselens.gates.attention import IMPLEMENTATION
from sparselens.gates.gate import finite_bias
from sparselens.gates.surgery import sparsify
from sparselens.models import adapters
from sparselens.models.card import model_card
from sparselens.models.character_model import attend_both_ways
from sparselens.models.export import to_transformers
from sparselens.models.places import ALL_BUT_WEIGHTS, ALL_FILES, find, split_gguf
from sparselens.models.provenance import origin, record_of
from sparselens.models.unwrapped import without_peft
from sparselens.models.weights import gguf_reader, open_weights, without_bar
from sparselens.training.evaluation import Evaluation
from sparselens.training.result import PostTrainResult

RECORD = "sparselens.json"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    base_model: str | None = None,
    result: PostTrainResult | None = None,
    test: tuple[Evaluation, Evaluation] | None = None,
    command: str | None = None,
    merge: bool = False,
    data: Mapping[str, Any] | None = None,
    figures: Sequence[str | Path] = (),
) -> Path:
    """Write a TransformerBridge or transformers model, dense or sparse, to `folder`, either completely or not at all.

    `sparselens.load(folder)` returns the same gated TransformerLens model, bit for bit. The folder also works with
    transformers. A sparse model's config asks for `attn_implementation="sparselens"`, so transformers raises an error
    until `sparselens.register_attention()` has been called, instead of running the model without its gates. A model
    saved earlier in `folder` is replaced.

    For a model with adapters (LoRA), only the adapters are written, as peft does, with the name of their base model.
    `load` then opens the base model and merges the adapters into its weights.

    >>> sl.save(model, "gpt2-sparse", result=result)
    >>> sl.load("gpt2-sparse")

    Args:
        tokenizer: default: the model's own, if it has one
        base_model: hub id or folder of the dense model, for the record (only the name of a folder is recorded); for
            adapters, the model that they belong to. Default: where the model was loaded from
        result: of `post_train`, for the record
        test: evaluations of the dense and the sparse model on text used neither for training nor for selection;
            default: those of `result`, on its held-out text
        command: the command line that made the model; default: the running one, if it is sparselens
        merge: write a model with adapters as a whole model, with the adapters merged into the weights
        data: what was held out from the training text (`sparselens.training.text.Corpus.record`)
        figures: files to copy into the folder; the model card shows those that are .png

    Raises:
        ValueError: `folder` holds something else, the model cannot be converted to a transformers model, or the base
            model of the adapters is unknown.
        OSError: the disk is full, or the folder is not writable. A model saved there earlier is kept.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / RECORD).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not a saved model: choose another folder")
    base = base_model or origin(model)
    record: dict[str, Any] = {**record_of(model, base, result, test, command), "data": data}
    only_adapters = adapters.has_adapters(model) and not merge
    if only_adapters:
        record["base_sample"] = adapters.base_sample(model)
    try:
        with whole_folder(folder) as new:
            if only_adapters:
                _write_adapter(model, new, base)
            else:
                _write_whole(model, new, record["gate_bias"])
            _write_rest(model, new, record, tokenizer, [Path(figure) for figure in figures])
    except (OSError, SafetensorError) as error:  # safetensors raises its own error if the disk is full
        raise OSError(f"{folder} could not be written: {error}") from error
    return folder


def _write_whole(model: nn.Module, folder: Path, gate_bias: float | None) -> None:
    plain = to_transformers(model)
    with without_bar():
        plain.save_pretrained(folder)
    _mark_config(folder / "config.json", gate_bias, plain)


def _write_adapter(model: nn.Module, folder: Path, base: str | None) -> None:
    if base is None:
        raise ValueError(
            "it is unknown which model these adapters belong to: pass base_model=FOLDER_OR_ID, or merge=True to write "
            "the whole model"
        )
    adapters.write_adapter(model, folder, str(Path(base).resolve()) if Path(base).exists() else base)


def _write_rest(
    model: nn.Module, folder: Path, record: dict[str, Any], tokenizer: Any, figures: Sequence[Path]
) -> None:
    tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_json(folder / RECORD, record)
    for figure in figures:
        shutil.copyfile(figure, folder / figure.name)
    shown = [figure.name for figure in figures if figure.suffix == ".png"]
    network: Any = without_peft(model)
    architecture = type(getattr(network, "original_model", network)).__name__
    card = model_card(record, architecture, adapter=(folder / adapters.CONFIG).exists(), pictures=shown)
    (folder / "README.md").write_text(card, encoding="utf-8")
    same_readers(folder, like=folder / RECORD)


def _mark_config(path: Path, gate_bias: float | None, model: PreTrainedModel) -> None:
    config = json.loads(path.read_text())
    for name in ("gate_bias", "sparselens_dense_implementation", "attn_implementation"):
        config.pop(name, None)
    if gate_bias is not None:
        config["gate_bias"] = gate_bias
        if model._can_set_attn_implementation():
            config["attn_implementation"] = IMPLEMENTATION
    write_json(path, config)


def load(
    name: str | Path,
    sparse: bool = True,
    *,
    base: str | Path | None = None,
    gguf_file: str | None = None,
    **options: Any,
) -> Any:
    """Open a model as a TransformerBridge in evaluation mode, with gates if it was saved with gates.

    >>> model = sl.load("addition-sparse")
    >>> dense = sl.load("HuggingFaceTB/SmolLM2-135M", dtype=torch.bfloat16)

    Args:
        name: a folder, the name of a shipped model (see `shipped_models`), or a hub id, which is downloaded
        sparse: False leaves the gates out, to run the sparse model's weights with dense attention
        base: for a folder with adapters, the model that they belong to, if it is not where the folder says
        gguf_file: a GGUF file in the folder or repository to read instead (needs the gguf package); a `name` that ends
            in .gguf works too
        options: passed on to transformers' `from_pretrained`, e.g. `dtype` or `device_map`

    Raises:
        ValueError: there is no such model; it is incomplete (a weight is missing, a file is truncated); opening it
            would need a pickle or code from its repository; or TransformerLens does not support its architecture.
    """
    given: Any = name
    if not isinstance(given, (str, Path)):
        raise ValueError(
            f"load takes a folder or a hub id, not a {type(given).__name__}: to wrap a transformers model, use "
            "TransformerBridge.boot_transformers(..., hf_model=model)"
        )
    if "device" in options:
        raise ValueError(
            f"device={options['device']!r}: from_pretrained has no option device, use sl.load(...).to(device)"
        )
    model, tokenizer, gate_bias = load_transformers(name, base=base, gguf_file=gguf_file, **options)
    bridge = to_bridge(model, tokenizer)
    return sparsify(bridge, gate_bias) if sparse and gate_bias is not None else bridge


def load_transformers(
    name: str | Path, *, base: str | Path | None = None, gguf_file: str | None = None, **options: Any
) -> tuple[PreTrainedModel, Any, float | None]:
    """The plain transformers model with eager attention and no gates, its tokenizer or None, its gate bias or None.

    Takes the arguments of `load` and raises the same errors.
    """
    place, file = split_gguf(name, gguf_file)
    path = find(place, ALL_FILES if file is None else (file,))
    if (path / adapters.CONFIG).exists():
        return _load_adapter(path, str(name), base, options)
    if base is not None:
        raise ValueError(
            f"base={str(base)!r} is for a folder with adapters, and {name} holds none (no {adapters.CONFIG})"
        )
    if file is None and not (path / "config.json").exists():
        inside = path / "model" / "config.json"
        hint = f" (but {inside.parent} is a model folder)" if inside.exists() else ""
        raise ValueError(f"{path} is not a model folder: it holds no config.json{hint}")
    model = open_weights(path, str(name), file, options)
    if file is None:
        _refuse_lost_bias(path)
    gate_bias = getattr(model.config, "gate_bias", None)
    for attribute in ("gate_bias", "sparselens_dense_implementation"):
        model.config.__dict__.pop(attribute, None)
    model.config._name_or_path = place if file is None else f"{place}/{file}"  # instead of a path in the local cache
    attend_both_ways(model)
    return model.eval(), _tokenizer(path, file), None if gate_bias is None else finite_bias(gate_bias)


def _refuse_lost_bias(path: Path) -> None:
    """Raise a ValueError if the folder holds a gated model but its config.json has no gate bias."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    named = str(config.get("attn_implementation")).startswith(IMPLEMENTATION)
    if config.get("gate_bias") is None and (named or _read_record(path).get("gate_bias") is not None):
        raise ValueError(
            f"{path} was saved with gates, but its config.json has no gate_bias: copy it there from {RECORD}"
        )


def _load_adapter(
    path: Path, name: str, base: str | Path | None, options: dict[str, Any]
) -> tuple[PreTrainedModel, Any, float | None]:
    """The base model with the adapters merged in; its tokenizer is used if the folder has none."""
    under = str(base or adapters.base_of(path))
    if Path(under).resolve() == path.resolve():
        raise ValueError(f"{path / adapters.CONFIG} names its own folder as the base model: pass base=...")
    try:
        model, tokenizer, _ = load_transformers(under, **options)
    except ValueError as error:
        raise ValueError(
            f"{name} holds adapters of {under!r}, which cannot be opened: {error}. If you have that model elsewhere, "
            "pass base=FOLDER_OR_ID (--base on the command line); a hub id needs a connection the first time"
        ) from error
    record = _read_record(path)
    adapters.put_adapter(model, path, record.get("base_sample"))
    model.config._name_or_path = name
    gate_bias = record.get("gate_bias")
    return model, _tokenizer(path) or tokenizer, None if gate_bias is None else finite_bias(gate_bias)


def load_record(name: str | Path) -> dict[str, Any]:
    """The `sparselens.json` of a model; empty if another program saved the model."""
    return _read_record(find(split_gguf(name, None)[0], ALL_BUT_WEIGHTS))


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a folder, a shipped model or a hub repository; does not download weights.

    Raises:
        ValueError: it has no tokenizer.
    """
    place, file = split_gguf(name, None)
    path = find(place, ALL_BUT_WEIGHTS if file is None else (file,))
    tokenizer = _tokenizer(path, file)
    if tokenizer is None and (path / adapters.CONFIG).exists():
        return load_tokenizer(adapters.base_of(path))
    if tokenizer is None:
        raise ValueError(f"{name} holds no tokenizer")
    return tokenizer


def to_bridge(model: PreTrainedModel, tokenizer: Any = None) -> Any:
    """Wrap a transformers model in a TransformerBridge, which changes the model in place."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    bridge = build_bridge_from_module(
        model, type(model).__name__, hf_config=model.config, tokenizer=tokenizer, device=str(model.device)
    )
    return bridge.eval()


def _tokenizer(path: Path, gguf_file: str | None = None) -> Any:
    if any((path / file).exists() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    if gguf_file is not None and "tokenizer.ggml.tokens" in gguf_reader(path / gguf_file).fields:
        return AutoTokenizer.from_pretrained(path, gguf_file=gguf_file, trust_remote_code=False)
    return None
