"""Compiles the kernels without needing a GPU, since Triton's interpreter accepts more than its compiler."""

import importlib.util
import os
import subprocess
import sys

import pytest

_COMPILE = """
from tests.benchmarks import gpu
for row in gpu.compiled_rows([(24, "bf16")], [90]):
    print(*row, sep="|")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the triton package")
def test_the_kernels_can_be_compiled() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _COMPILE]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    kernels = [line.split("|")[0].split(",")[0] for line in result.stdout.splitlines()]
    assert kernels == ["forward", "backward_queries", "backward_keys"]
