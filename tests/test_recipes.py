"""The recipes for GPUs: what they ask of the command line is what it takes."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from sparselens.cli import build_app

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.sh"))


def test_there_are_recipes():
    assert [path.stem for path in RECIPES] == ["gpt2", "llama-1b", "smollm2"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_options_are_those_of_post_train(recipe: Path):
    subprocess.run(["bash", "-n", recipe], check=True)
    command: Any = typer.main.get_command(build_app())
    known = {option for parameter in command.commands["post-train"].params for option in parameter.opts}
    _, asked = recipe.read_text().rsplit("sparselens post-train", 1)
    options = re.findall(r"--[a-z-]+", asked)
    assert "--model" in options
    assert set(options) <= known
    given = dict(re.findall(r"--([a-z-]+) (\d+)", asked))
    assert int(given["batch-tokens"]) % (int(given["seq-len"]) * int(given["batch-size"])) == 0
