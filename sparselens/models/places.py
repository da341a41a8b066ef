"""Finds models by folder, name of a shipped model, or hub id."""

from pathlib import Path

from sparselens.models.adapters import CONFIG

MODELS = Path(__file__).parent / "shipped"  # models that ship with the package
ALL_BUT_WEIGHTS = ("*.json", "*.txt", "*.model", "*.md")
ALL_FILES = (*ALL_BUT_WEIGHTS, "*.safetensors")  # that a model needs; never a pickle


def shipped_models() -> list[str]:
    """Names of the models that ship with the package, which `load` accepts."""
    return sorted({file.parent.name for file in MODELS.glob("*/*") if file.name in ("config.json", CONFIG)})


def is_local(name: str) -> bool:
    """Whether this is a local path (existing or not) rather than the name of a shipped model or a hub id."""
    return Path(name).exists() or name.count("/") > 1 or "\\" in name or name.startswith((".", "/", "~"))


def holds_adapters(name: str | Path) -> bool:
    """Whether a folder, a shipped model or a hub repository holds adapters; does not download weights.

    Raises:
        ValueError: there is no such model.
    """
    return (find(split_gguf(name, None)[0], ALL_BUT_WEIGHTS) / CONFIG).exists()


def split_gguf(name: str | Path, gguf_file: str | None) -> tuple[str, str | None]:
    """Split a path that ends in .gguf into its folder or hub id and the file; leave other names as they are."""
    if gguf_file is None and str(name).endswith(".gguf"):
        return str(Path(name).parent), Path(name).name
    return str(name), gguf_file


def find(name: str, files: tuple[str, ...] = ALL_FILES) -> Path:
    """The local folder of a model, downloaded if `name` is a hub id.

    Args:
        files: patterns of the files to download

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
            f"{repository!r} is neither a folder nor a shipped model ({', '.join(shipped_models())}), and could not be "
            f"downloaded from the hub: {error}"
        ) from error
