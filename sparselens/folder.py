"""Saves a model as an ordinary transformers folder with its gates written down, and opens such folders.

- `config.json`, `model.safetensors`, tokenizer files: what transformers writes
- `sparselens.json`: base model, gate bias, target, losses, share of open edges, command
- `README.md`: the model card
"""

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from sparselens.attention import IMPLEMENTATION
from sparselens.card import model_card
from sparselens.character_model import attend_both_ways
from sparselens.evaluation import Evaluation
from sparselens.export import to_transformers
from sparselens.files import write_json
from sparselens.result import PostTrainResult
from sparselens.surgery import find_settings, sparsify

MODELS = Path(__file__).parent / "models"  # the models that ship with the package
RECORD = "sparselens.json"
_NEEDED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.md"]  # never a pickle


def shipped_models() -> list[str]:
    """Names that `load` knows without a folder or the network."""
    return sorted(path.parent.name for path in MODELS.glob("*/config.json"))


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    base_model: str | None = None,
    result: PostTrainResult | None = None,
    test: tuple[Evaluation, Evaluation] | None = None,
    command: str | None = None,
    figures: Sequence[str | Path] = (),
) -> Path:
    """Write a TransformerBridge or transformers model, dense or sparse, to `folder`: all of it or nothing.

    `sparselens.load(folder)` gives the gated TransformerLens model back, bit for bit. For transformers it is a folder
    like any other; a sparse one asks for `attn_implementation="sparselens"`, so that transformers refuses to open it
    before `sparselens.register_attention()` rather than running it without its gates. A model saved in `folder`
    before is replaced.

    Args:
        tokenizer: default: the model's own, where it has one
        base_model: where the dense model came from, for the record
        result: of `post_train`, for the record
        test: the dense and the sparse model on text that neither training nor selection saw; default: the held-out
            text of `result`
        command: the command line that made the model; default: the running program's
        figures: files to be copied into the folder; its card shows those that are .png

    Raises:
        ValueError: `folder` holds something else, or the model cannot be expressed as a transformers model.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / RECORD).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not a saved model: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        whole = Path(temporary) / "model.new"
        _write(model, whole, tokenizer, _record(model, base_model, result, test, command), [*map(Path, figures)])
        _replace(folder, whole, Path(temporary) / "previous")
    return folder


def _replace(folder: Path, new: Path, previous: Path) -> None:
    """Put `new` in the place of `folder`; if that fails, the old one stays."""
    if folder.exists():
        folder.rename(previous)
    try:
        new.rename(folder)
    except BaseException:
        if previous.exists():
            previous.rename(folder)
        raise


def _record(
    model: nn.Module,
    base_model: str | None,
    result: PostTrainResult | None,
    test: tuple[Evaluation, Evaluation] | None,
    command: str | None,
) -> dict[str, Any]:
    """What `sparselens.json` and the model card say; None for what is not known."""
    settings = find_settings(model)
    dense, sparse = test or ((result.dense, result.sparse) if result else (None, None))
    return {
        "base_model": base_model,
        "gate_bias": None if settings is None else settings.gate_bias,
        "target": None if result is None else result.target,
        "feasible": None if result is None else result.feasible,
        "step": None if result is None else result.step,
        "dense": None if dense is None else asdict(dense),
        "sparse": None if sparse is None else asdict(sparse),
        "command": command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("sparselens", "torch", "transformers")},
    }


def _write(model: nn.Module, folder: Path, tokenizer: Any, record: dict[str, Any], figures: Sequence[Path]) -> None:
    plain = to_transformers(model)
    record["base_model"] = record["base_model"] or plain.config._name_or_path or None
    plain.save_pretrained(folder)
    _mark_config(folder / "config.json", record["gate_bias"], plain)
    tokenizer = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_json(folder / RECORD, record)
    for figure in figures:
        shutil.copyfile(figure, folder / figure.name)
    shown = [figure.name for figure in figures if figure.suffix == ".png"]
    (folder / "README.md").write_text(model_card(record, type(plain).__name__, shown), encoding="utf-8")


def _mark_config(path: Path, gate_bias: float | None, model: PreTrainedModel) -> None:
    config = json.loads(path.read_text())
    for name in ("gate_bias", "sparselens_dense_implementation", "attn_implementation"):
        config.pop(name, None)
    if gate_bias is not None:
        config["gate_bias"] = gate_bias
        if model._can_set_attn_implementation():
            config["attn_implementation"] = IMPLEMENTATION
    write_json(path, config)


def load(name: str | Path, sparse: bool = True, **options: Any) -> Any:
    """Open a model as a TransformerBridge in evaluation mode, with its gates if it was saved with gates.

    Args:
        name: a folder, the name of a shipped model (see `shipped_models`), or the id of a hub repository, which is
            then downloaded
        sparse: False leaves the gates out: the sparse model's weights with dense attention
        options: passed on to transformers' `from_pretrained`, e.g. `dtype` or `device_map`

    Raises:
        ValueError: no such model, or its architecture cannot be opened by TransformerLens.
    """
    model, tokenizer, gate_bias = load_transformers(name, **options)
    bridge = to_bridge(model, tokenizer)
    return sparsify(bridge, gate_bias) if sparse and gate_bias is not None else bridge


def load_transformers(name: str | Path, **options: Any) -> tuple[PreTrainedModel, Any, float | None]:
    """The plain transformers model with eager attention and no gates, its tokenizer or None, its gate bias or None."""
    path = _find(name)
    config = AutoConfig.from_pretrained(path)
    gate_bias = getattr(config, "gate_bias", None)
    for attribute in ("gate_bias", "sparselens_dense_implementation"):
        config.__dict__.pop(attribute, None)
    architecture = (config.architectures or ["none"])[0]
    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise ValueError(f"{name}: transformers {transformers.__version__} has no architecture {architecture!r}")
    options = {"attn_implementation": "eager", "use_safetensors": True} | options
    model = kind.from_pretrained(path, config=config, **options)
    model.config._name_or_path = str(name)  # not the path of somebody's cache
    attend_both_ways(model)
    return model.eval(), _tokenizer(path), gate_bias


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a folder, a shipped model or a hub repository, of which nothing else is then downloaded.

    Raises:
        ValueError: there is none.
    """
    path = Path(name) if Path(name).exists() else MODELS / str(name)
    if not path.exists():
        path = _download(str(name), [pattern for pattern in _NEEDED if "safetensors" not in pattern])
    tokenizer = _tokenizer(path)
    if tokenizer is None:
        raise ValueError(f"{name} holds no tokenizer")
    return tokenizer


def to_bridge(model: PreTrainedModel, tokenizer: Any = None) -> Any:
    """The same weights as a TransformerBridge, which changes the transformers model in place."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    bridge = build_bridge_from_module(
        model, type(model).__name__, hf_config=model.config, tokenizer=tokenizer, device=str(model.device)
    )
    return bridge.eval()


def _find(name: str | Path) -> Path:
    path = Path(name)
    if (path / "config.json").exists():
        return path
    if path.exists():
        raise ValueError(f"{path} is not a model folder: it holds no config.json")
    if (MODELS / str(name) / "config.json").exists():
        return MODELS / str(name)
    if str(name).count("/") > 1 or str(name).startswith((".", "/", "~")):
        raise ValueError(f"no such folder: {name}")
    return _download(str(name))


def _download(repository: str, patterns: list[str] = _NEEDED) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{repository!r} is no folder, no shipped model ({', '.join(shipped_models())}), and the hub gave no such "
            f"repository: {error}"
        ) from error


def _tokenizer(path: Path) -> Any:
    if not any((path / file).exists() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    return AutoTokenizer.from_pretrained(path)


def push_to_hub(
    model: nn.Module, repo_id: str, *, private: bool = True, token: str | None = None, **record: Any
) -> str:
    """Save the model, with the keyword arguments of `save`, and upload the folder. Returns its address.

    The only function that sends anything anywhere; it needs a token of the hub that may write to `repo_id`.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = save(model, Path(temporary) / "model", **record)
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Sparse-attention model")
    return f"https://huggingface.co/{repo_id}"
