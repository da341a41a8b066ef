"""Kills a training run again and again at random moments, and compares its end with that of a run in peace.

Run by hand: `python tests/benchmarks/kill_and_resume.py --kills 20`. A moment is drawn between the start of the program
and the end of what is left of the run, so that kills hit imports, steps, evaluations and checkpoints alike.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"steps": 1500, "checkpoint_every": 3, "evaluate_every": 10}


def start(out: Path) -> subprocess.Popen[bytes]:
    given = {"kind": "transformers", "family": "gpt2", "model": {"resid_pdrop": 0.2}, "out": str(out)}
    given |= {"options": OPTIONS, "pause": 0.05, "resume": True}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "tests.tiny_runs", json.dumps([given])], cwd=ROOT, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        begun = time.monotonic()
        assert start(whole).wait() == 0
        seconds = time.monotonic() - begun
        kills = 0
        while kills < arguments.kills:
            program = start(killed)
            try:
                program.wait(draw.uniform(0.03, 0.14) * seconds)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
                kills += 1
                checkpoint = killed / "checkpoint.pt"
                step = torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0
                print(f"kill {kills}: checkpoint of step {step}", flush=True)
                continue
            assert program.returncode == 0, program.returncode
            print(f"the run ended after {kills} kills: more steps are needed for {arguments.kills}")
            break
        else:
            assert start(killed).wait() == 0
        one, other = (torch.load(out / "result-0.pt", weights_only=True) for out in (whole, killed))
    assert one["history"] == other["history"]
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    print(f"after {kills} kills all weights and the history are those of the run in peace, bit for bit")


if __name__ == "__main__":
    main()
