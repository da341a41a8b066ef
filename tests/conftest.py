"""What every test runs under: no network, one thread, the same random numbers every time."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is first imported
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too: the same sums in the same order

import random
from importlib.metadata import version
from pathlib import Path

# Large libraries first: what a module under jaxtyping's import hook is the first to import is compiled anew, since the
# hook looks for bytecode of its own kind, also for the libraries. That took more than half of the start.
import accelerate  # noqa: F401
import beartype.vale  # noqa: F401
import datasets  # noqa: F401
import numpy as np
import pytest
import rich.table  # noqa: F401
import torch
import transformer_lens.model_bridge  # noqa: F401
import transformers.masking_utils
import transformers.modeling_utils
import transformers.processing_utils  # noqa: F401

import tests.quick_checks  # noqa: F401

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported: kernels run on the CPU

# HookedTransformer left TransformerLens with 4.0; its tests run in an environment of their own.
collect_ignore = [] if version("transformer-lens").startswith("3.") else ["hooked"]


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """One thread is fastest for tiny models, and gives the same sums in the same order."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small models, texts and task tables that may lie beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the data folder beside the repository (../shared/data)")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need what is not here are skipped, with the reason."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("network") and os.environ["HF_HUB_OFFLINE"] == "1":
        pytest.skip("needs the network: set HF_HUB_OFFLINE=0")
