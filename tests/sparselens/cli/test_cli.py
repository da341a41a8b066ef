"""The command line: what help costs, what a mistake looks like, and what the doctor finds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from packaging.requirements import Requirement
from safetensors import SafetensorError
from typer.testing import CliRunner, Result

from sparselens import __version__, cli
from sparselens.analyses.attribution.integration import Method
from sparselens.analyses.circuits.circuit_runs import Ablation
from sparselens.analyses.engine.gate_gradient import GateGradient
from sparselens.analyses.figures.paper import FORMATS
from sparselens.cli import doctor, options, table
from sparselens.files.whole import write_json
from sparselens.prompts.metrics import METRICS
from sparselens.prompts.tokenized import CLUSTER_BY
from sparselens.training.trained import PARTS

HELP = """
import sys, time
from sparselens.cli import main
sys.argv = ["sparselens", "--help"]
try:
    main()
finally:
    loaded = [name for name in ("torch", "transformer_lens", "transformers") if name in sys.modules]
    print(time.process_time(), *loaded, file=sys.stderr)
"""


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.build_app(), list(arguments), catch_exceptions=False)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["sparselens", *arguments])
    cli.main()


def test_help_is_quick_and_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True, cwd="/")
    seconds, *loaded = done.stderr.split()
    assert loaded == []
    assert all(command in done.stdout for command in (*cli.COMMANDS, *cli.GROUPS))
    assert float(seconds) < 3  # of processor time; 0.3 on a quiet machine


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_shows_an_example_and_the_common_options(command: str):
    shown = invoke(command, "--help").output
    assert f"sparselens {command}" in shown.split("Usage:")[1].split("\n", 1)[1]
    assert "--out" in shown
    assert "--json" in shown


PAIR = ("--dense", "addition", "--sparse", "addition-sparse", "--task", "addition", "--out", "x")
RUN = ("--model", "addition", "--task", "addition", "--out", "x")
POST = ("post-train", "--model", "addition", "--data", "x", "--out", "x")
WRONG = {  # what is typed, and what is said
    ("compare", *PAIR, "--method", "eap-gi"): "no such method: 'eap-gi', did you mean 'eap-ig'? (want eap, ",
    ("compare", *PAIR, "--task", "iio"): "no such task: 'iio', did you mean 'ioi'? (want ",
    ("compare", *PAIR, "--format", "pfd"): "did you mean 'pdf'?",
    ("compare", *PAIR, "--corruption", "cary"): "no such corruption of 'addition': 'cary', did you mean 'carry'?",
    ("attribute", *RUN, "--metric", "logit_dif"): "did you mean 'logit_difference'?",
    ("attribute", *RUN, "--ablation", "corrupt"): "did you mean 'corrupted'?",
    ("attribute", *RUN, "--goal", "80"): "goal must be above 0 and at most 1, not 80",
    ("attribute", *RUN, "--steps", "0"): "Invalid value for '--steps'",
    ("attribute", *RUN, "--model", "story260k"): "did you mean 'stories260k'?",
    ("figures", "nowhere", "--out", "x"): "no such comparison: 'nowhere' (want addition/addition, ",
    ("report", "stories260k/pronoun"): "did you mean 'stories260k/gendered_pronoun'?",
    (*POST, "--train", "qkv"): "no such part: 'qkv', did you mean 'qk'?",
    (*POST, "--learning-rate", "fast"): "--learning-rate 'fast': want \"auto\" or a number",
    ("tasks", "show", "brakets"): "did you mean 'brackets'?",
    ("compar", *PAIR): "Did you mean 'compare'?",
}
QUICKLY = HELP.replace('"--help"', "*sys.argv[1:]").replace("print(time", 'print("\\nTIME", time')


def _mistyped(typed: tuple[str, ...], folder: Path) -> tuple[str, float, list[str]]:
    """What is said, seconds of processor time, and the slow modules that were loaded."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", QUICKLY, *typed]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode
    said, last = done.stderr.split("\nTIME ")
    seconds, *loaded = last.split("\n")[0].split()
    return " ".join(said.split()), float(seconds), loaded


@pytest.mark.parametrize("typed", WRONG, ids=" ".join)
def test_a_wrong_option_is_answered_at_once(typed: tuple[str, ...], tmp_path: Path):
    """Before torch loads, which takes many seconds. The first call may have to compile, another process may disturb."""
    tries = [_mistyped(typed, tmp_path)]
    while tries[-1][1] >= 1 and len(tries) < 3:
        tries.append(_mistyped(typed, tmp_path))
    said, seconds, loaded = tries[-1]
    assert WRONG[typed] in said and loaded == [] and not list(tmp_path.iterdir())
    assert seconds < 1


def test_options_know_what_the_analyses_know():
    assert get_args(Method) == options.METHODS and get_args(Ablation) == options.ABLATIONS
    assert get_args(GateGradient) == options.GATE_GRADIENTS
    assert (tuple(METRICS), FORMATS) == (options.METRICS, options.FORMS)
    assert (PARTS, CLUSTER_BY) == (options.PARTS, options.CLUSTERS)


def test_version():
    assert invoke("--version").output.strip() == __version__


def test_python_dash_m_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "sparselens", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


@pytest.mark.parametrize("kind", [ValueError, OSError, ImportError, SafetensorError])
def test_a_mistake_ends_in_one_line(kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys):
    fail_with(kind("no such thing: 'x'\n  (want y)"), monkeypatch)
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, "doctor")
    captured = capsys.readouterr()
    assert stop.value.code == 1
    assert captured.out == ""
    assert captured.err.startswith("error: no such thing: 'x' (want y)")
    assert captured.err.count("\n") == 1


def test_a_mistake_shows_its_traceback_when_asked_to(monkeypatch: pytest.MonkeyPatch):
    fail_with(ValueError("no such thing"), monkeypatch)
    monkeypatch.setenv("SPARSELENS_DEBUG", "1")
    with pytest.raises(ValueError, match="no such thing"):
        run_main(monkeypatch, "doctor")


def test_a_bug_is_never_hidden(monkeypatch: pytest.MonkeyPatch):
    fail_with(KeyError("not the caller's fault"), monkeypatch)
    with pytest.raises(KeyError):
        run_main(monkeypatch, "doctor")


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(project: str) -> list[doctor.Package]:
        raise error

    monkeypatch.setattr(doctor, "examine_packages", fail)


def test_doctor_reports_a_healthy_installation(tmp_path: Path):
    result = invoke("doctor", "--json", "--out", str(tmp_path))
    report = json.loads(result.stdout.splitlines()[-1])
    assert report == json.loads((tmp_path / "doctor.json").read_text())
    assert [file.name for file in tmp_path.iterdir()] == ["doctor.json"]
    assert "TransformerBridge" in report["models"]
    assert report["devices"][0].startswith("cpu")
    assert report["hub"][0].startswith("offline")
    assert report["attention"][0] == "eager"
    assert report["attention"][-1].startswith("auto is ")
    torch = next(package for package in report["packages"] if package["name"] == "torch")
    assert torch["wanted"] == ">=2.6"
    assert torch["problem"] == ""


def test_doctor_reports_an_absent_torch_and_mends_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "requires", lambda project: ["torch>=2.6", "no-such-thing>=1; extra == 'dev'"])
    monkeypatch.setattr(doctor, "version", absent("torch"))
    result = invoke("doctor", "--json")
    report = json.loads(result.stdout.splitlines()[-1])
    (problem,) = [package for package in report["packages"] if package["problem"]]
    assert result.exit_code == 1
    assert not report["ok"]
    assert problem["problem"] == "missing"
    assert problem["mend"].endswith('-m pip install "torch>=2.6"')


def absent(missing: str):
    def version(name: str) -> str:
        if name == missing:
            raise doctor.PackageNotFoundError(name)
        return "1.0"

    return version


def test_doctor_reports_what_is_out_of_range():
    found = doctor.examine(Requirement("typer>=999"))
    assert found.problem == "out of range"
    assert '"typer>=999"' in found.mend


def test_doctor_reports_a_torch_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch):
    def broken(module: str):
        raise OSError("libtorch.so: cannot open\nshared object file")

    monkeypatch.setattr(doctor, "import_module", broken)
    found = doctor.examine(Requirement("torch>=2.6"))
    assert found.problem == "broken: OSError: libtorch.so: cannot open shared object file"
    assert found.mend.endswith("--force-reinstall")


def test_doctor_leaves_open_what_a_broken_package_cannot_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    found = doctor.examine_surroundings()
    assert found.devices == []
    assert "HookedTransformer" not in found.models


def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path):
    file = tmp_path / "new" / "result.json"
    write_json(file, {"model": tmp_path, "loss": 1.5})
    assert json.loads(file.read_text()) == {"model": str(tmp_path), "loss": 1.5}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(file, {"loss": float("nan")})
    assert json.loads(file.read_text())["loss"] == 1.5
    assert list(file.parent.iterdir()) == [file]


def test_tables_never_cut_a_path(capsys):
    path = "/a/very/long/path" * 12
    table.print_table("result", ("what", "where"), [("model", path), ("count", 3)])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "".join(printed.split()).count("very") == 12
