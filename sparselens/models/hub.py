"""Uploads a model to the Hugging Face hub in the format of `folder.save`."""

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from sparselens.models import adapters
from sparselens.models.folder import save
from sparselens.models.places import is_local


def push_to_hub(
    model: nn.Module, repo_id: str, *, private: bool = True, token: str | None = None, **record: Any
) -> str:
    """Save the model, with the keyword arguments of `save`, and upload the folder. Returns its URL.

    This is the only function that uploads anything. It needs a hub token with write access to `repo_id`.

    >>> sl.push_to_hub(model, "me/gpt2-sparse", result=result)

    Raises:
        ValueError: the model has adapters whose base model is a local folder, which nobody else could open.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = save(model, Path(temporary) / "model", **record)
        if (folder / adapters.CONFIG).exists() and is_local(base := adapters.base_of(folder)):
            raise ValueError(
                f"the base model of these adapters is a local folder, {base}: pass base_model=HUB_ID, or merge=True"
            )
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Sparse-attention model")
    return f"https://huggingface.co/{repo_id}"
