"""What every test runs under: no network, one thread, the same random numbers every time."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is first imported
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too: the same sums in the same order

import gc
import random
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.quick_checks import begin_test

# HookedTransformer left TransformerLens with 4.0; its tests run in an environment of their own.
collect_ignore = [] if version("transformer-lens").startswith("3.") else ["hooked"]

LARGE = (
    "accelerate",
    "beartype.vale",
    "datasets",
    "numpy",
    "rich.table",
    "torch",
    "transformer_lens.model_bridge",
    "transformers.masking_utils",
    "transformers.modeling_utils",
    "transformers.processing_utils",
)

# Whole files go to one process; one that comes last and takes long would let the others wait for it.
LONGEST = (
    "test_notebooks.py",
    "analyses/comparison/test_comparison.py",
    "cli/test_post_train_command.py",
    "attribution/test_edges.py",
    "figures/test_viewer.py",
    "circuits/test_faithfulness.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Large libraries first, in every process that runs tests; one that only hands them out needs none.

    What a module under jaxtyping's import hook is the first to import is compiled anew, since the hook looks for
    bytecode of its own kind, also for the libraries. That took more than half of the start.
    """
    if config.getoption("dist", "no") == "no" or hasattr(config, "workerinput"):
        if not import_module("torch").cuda.is_available():
            os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported: kernels run on the CPU
        for name in LARGE:
            import_module(name)
        gc.set_threshold(100_000, 20, 100)  # else the libraries' many objects are walked over and over


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


@pytest.fixture(autouse=True)
def repeatable() -> None:
    """One thread is fastest for tiny models, and gives the same sums in the same order."""
    import numpy as np
    import torch

    begin_test()
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
    import torch

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("network") and os.environ["HF_HUB_OFFLINE"] == "1":
        pytest.skip("needs the network: set HF_HUB_OFFLINE=0")
