"""Where a model is: a folder, the name of a shipped model, or the id of a hub repository."""

from pathlib import Path

from sparselens.models.adapters import CONFIG

MODELS = Path(__file__).parent / "shipped"  # the models that ship with the package
WEIGHTS_AND_WORDS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.md")  # never a pickle
WORDS = tuple(pattern for pattern in WEIGHTS_AND_WORDS if "safetensors" not in pattern)


def shipped_models() -> list[str]:
    """Names that `load` knows without a folder."""
    return sorted({file.parent.name for file in MODELS.glob("*/*") if file.name in ("config.json", CONFIG)})


def is_local(name: str) -> bool:
    """Is this a path on this machine, there or not, rather than a shipped name or a hub id?"""
    return Path(name).exists() or name.count("/") > 1 or "\\" in name or name.startswith((".", "/", "~"))


def holds_adapters(name: str | Path) -> bool:
    """Whether a folder, a shipped model or a hub repository holds adapters; of the last only words are downloaded.

    Raises:
        ValueError: there is no such model.
    """
    return (find(split_gguf(name, None)[0], WORDS) / CONFIG).exists()


def split_gguf(name: str | Path, gguf_file: str | None) -> tuple[str, str | None]:
    """A folder or hub id, and the GGUF file in it, which may have been given as one path."""
    if gguf_file is None and str(name).endswith(".gguf"):
        return str(Path(name).parent), Path(name).name
    return str(name), gguf_file


def find(name: str, files: tuple[str, ...] = WEIGHTS_AND_WORDS) -> Path:
    """The folder of a model.

    Args:
        files: patterns of what is downloaded if `name` is a hub id

    Raises:
        ValueError: there is no such model.
    """
    if Path(name).exists():
        return Path(name)
    if "/" not in name and name in shipped_models():
        return MODELS / name
    if is_local(name):
        raise ValueError(f"no such folder: {name}")
    return _download(name, files)


def _download(repository: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(files)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{repository!r} is not a folder, not a shipped model ({', '.join(shipped_models())}), and the hub "
            f"gave no such repository: {error}"
        ) from error
