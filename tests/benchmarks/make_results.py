"""Makes the numbers of RESULTS.md anew: `make results`.

1. Every part is a command of sparselens, or a call, whose results stay in the work folder. A part that is finished is
   not run again, one that was interrupted goes on; `--again PART` starts it anew.
2. Its table takes the place of what RESULTS.md has between `<!-- PART -->` and `<!-- /PART -->`.
The parts about SmolLM2 take hours, and its folder (`--smollm2`). What took hours to train is not trained anew: those
tables say with which command it was.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import sparselens as sl
from sparselens import analyses
from sparselens.prompts.intervals import Interval
from sparselens.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
SMALL = {  # models in the data folder
    "stories3m": "stories3M (3.15 M parameters, vocabulary 4096)",
    "stories260k": "stories260K (0.26 M, vocabulary 512)",
}
TEXT = "text/tinystories_sample_2M.txt"
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # of circuits
N = 1000  # pairs of every task
SURE = 5  # points above chance, from which on an accuracy is bold


def command(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "sparselens", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def bench(script: str, *words: str | Path) -> str:
    """The markdown table that a script of this folder prints; what it printed before that is left out."""
    call = [sys.executable, str(Path(__file__).with_name(script)), *map(str, words)]
    said = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
    return "\n".join(line for line in said.splitlines() if line.startswith("|"))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def addition(out: Path, _data: Path) -> str:
    if not (out / "demo.json").exists():
        command("demo", "--out", out)
    models = json.loads((out / "demo.json").read_text())
    forms = {
        "exact match": ("exact_match", "{:.6g} %", 100),
        "open attention edges per example": ("open_edges_per_example", "{:.2f}", 1),
        "share of visible pairs (here all pairs)": ("share_of_visible_pairs", "{:.3g} %", 100),
    }
    rows = [
        [label, *(form.format(times * models[side][key]) for side in ("dense", "sparse"))]
        for label, (key, form, times) in forms.items()
    ]
    for kind in models["dense"]["open_edges_by_kind"]:
        layers = (models[side]["open_edges_by_kind"][kind] for side in ("dense", "sparse"))
        rows.append([f"per layer, sums with {kind}", *(", ".join(f"{n:.3g}" for n in each) for each in layers)])
    return markdown(("", "dense", "sparse"), rows)


def addition_circuits(out: Path, _data: Path) -> str:
    return analyses.load_comparison(out.parent / "addition" / "numbers").table("markdown")


def stories_circuits(out: Path, data: Path) -> str:
    if not (out / "report.html").exists():
        models = ("--dense", "stories260k", "--sparse", "stories260k-sparse", "--control", "stories260k-control")
        command("compare", *models, "--task", "gendered_pronoun", "--text", data / TEXT, "--out", out)
    return analyses.load_comparison(out / "numbers").table("markdown")


def stories_losses(out: Path, data: Path) -> str:
    stories_circuits(out.parent / "stories_circuits", data)
    points = analyses.load_comparison(out.parent / "stories_circuits" / "numbers").loss.points
    rows = []
    for point in points:
        low, high = point.interval().low, point.interval().high
        shares = (f"{100 * share:.3g} %" for share in (point.share_of_visible_pairs, point.share_of_all_pairs))
        name = f"**{point.name}**" if point.name == "sparse" else point.name
        rows.append(
            [name, f"{point.loss:.4f}", f"{low:.4f} to {high:.4f}", *shares, f"{point.edges_per_query_per_head:.3g}"]
        )
    return markdown(("", "loss", "95 % interval", "of visible pairs", "of all pairs", "edges per query and head"), rows)


def ioi_stories(out: Path, data: Path) -> str:
    if not (out / "curve.json").exists():
        model = sl.load(data / "models/stories3m")
        asked = sl.evaluate(model, TASKS["ioi_stories"], N // 10)
        pairs = asked.pairs[asked.correct]
        scores = analyses.attribute_edges(model, pairs)
        curve = analyses.faithfulness_curve(model, pairs, scores, sizes=SIZES)
        whole = analyses.faithfulness_curve(model, pairs, scores)  # at MIB's shares, up to all edges
        rows = []
        for n, own in zip(SIZES, curve.points, strict=True):
            drawn = analyses.random_connected_circuits(scores.top(n), 10)
            random = [analyses.faithfulness(model, circuit, pairs).mean for circuit in drawn]
            rows.append([f"{n:,}", said(own.interval()), f"{min(random):.2f} to {max(random):.2f}"])
        out.mkdir(parents=True, exist_ok=True)
        (out / "curve.json").write_text(
            json.dumps(
                {"pairs": len(pairs), "edges": scores.graph.n_edges, "rows": rows, "areas": [whole.cpr, whole.cmd]}
            )
        )
    found = json.loads((out / "curve.json").read_text())
    table = markdown((f"edges of {found['edges']:,}", "faithfulness", "ten random draws, connected"), found["rows"])
    return f"{found['pairs']} pairs.\n\n{table}\n\nCPR {found['areas'][0]:.3f}, CMD {found['areas'][1]:.3f}."


def small_models(out: Path, data: Path) -> str:
    columns: list[dict[str, Any]] = []
    for name in SMALL:
        if not (out / name / "tasks.json").exists():
            command("tasks", "evaluate", "--model", data / "models" / name, "-n", str(N), "--out", out / name)
        columns.append(json.loads((out / name / "tasks.json").read_text())["tasks"])
    rows = []
    for name in TASKS:
        found = [column.get(name, {}) for column in columns]
        chance = next((f"{100 * one['chance']:.0f}" for one in found if "chance" in one), "")
        rows.append([name, chance, *map(accuracy, found)])
    return markdown(("task", "chance", *SMALL.values()), rows)


def robust_stories(out: Path, _data: Path) -> str:
    models = ("--dense", "stories260k", "--sparse", "stories260k-sparse", "--task", "gendered_pronoun")
    how = ("--kinds", "template", "seed", "-n", "24", "--draw", "600", "--groups", "6")
    return bench("bench_robustness.py", *models, *how, "--out", made(out) / "lines.json")


def robust_addition(out: Path, _data: Path) -> str:
    models = ("--dense", "addition", "--sparse", "addition-sparse", "--task", "addition")
    how = ("--kinds", "template", "seed", "-n", "50", "--groups", "5")
    return bench("bench_robustness.py", *models, *how, "--out", made(out) / "lines.json")


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


STUDIED = (
    *("ioi", "docstring", "subject_verb_agreement", "greater_than", "gendered_pronoun", "country_capital"),
    *("hypernymy", "successor", "opposites_quoted", "acronyms", "fact_retrieval"),
)


def study(out: Path, smollm2: Path) -> str:
    return bench("bench_study.py", *of_smollm2(smollm2), "--out", out, "-n", "16", "--tasks", *STUDIED)


def heads(out: Path, smollm2: Path) -> str:
    tasks = [name for name in STUDIED if name != "docstring"]  # the longest prompts: not measured yet
    return bench("bench_heads.py", *of_smollm2(smollm2), "--out", out, "-n", "16", "--tasks", *tasks)


def pruned(out: Path, smollm2: Path) -> str:
    return bench("bench_pruning.py", *of_smollm2(smollm2), "--out", out, "-n", "24", "--tasks", *PRUNED)


def edges(out: Path, smollm2: Path) -> str:
    tasks = """ioi docstring greater_than gendered_pronoun subject_verb_agreement induction_text country_capital
        hypernymy opposites_quoted successor acronyms fact_retrieval"""
    return bench("bench_attention_edges.py", *of_smollm2(smollm2), "--out", out, "-n", "16", "--tasks", *tasks.split())


PRUNED = ("greater_than", "gendered_pronoun", "subject_verb_agreement", "successor", "country_capital", "hypernymy")


def of_smollm2(folder: Path) -> list[str | Path]:
    return ["--dense", folder, "--sparse", "smollm2-135m-sparse", "--base", folder]


def accuracy(found: dict[str, Any]) -> str:
    if "accuracy" not in found:
        return "does not fit"
    value, low, high = (100 * x for x in (found["accuracy"], *found["accuracy_interval"]))
    text = f"{value:.1f} [{low:.1f}, {high:.1f}]"
    return f"**{text}**" if low > 100 * found["chance"] + SURE else text


def said(interval: Interval) -> str:
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


PARTS: dict[str, Callable[[Path, Path], str]] = {
    part.__name__: part
    for part in (
        *(addition, addition_circuits, stories_circuits, stories_losses, ioi_stories, small_models),
        *(robust_stories, robust_addition, study, heads, pruned, edges),
    )
}
OF_SMOLLM2 = ("study", "heads", "pruned", "edges")


def put_into(text: str, part: str, table: str) -> str:
    """The text with a part's table in its place."""
    begin, end = f"<!-- {part} -->\n", f"\n<!-- /{part} -->"
    before, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"RESULTS.md has no place for {part}: want {begin.strip()} ... {end.strip()}")
    return before + begin + table + rest[rest.index(end) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "results-work", help="folder for what the parts leave")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of models and texts")
    parser.add_argument("--smollm2", type=Path, help=f"folder of SmolLM2-135M-Instruct, for {', '.join(OF_SMOLLM2)}")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="parts to make")
    parser.add_argument("--again", nargs="*", choices=PARTS, default=[], help="parts to begin anew")
    arguments = parser.parse_args()
    for part in arguments.again:
        shutil.rmtree(arguments.work / part, ignore_errors=True)
    for part in arguments.only:
        folder = arguments.smollm2 if part in OF_SMOLLM2 else arguments.data
        if folder is None:
            print(f"{part} is left as it is: it needs --smollm2", flush=True)
            continue
        print(part, flush=True)
        table = PARTS[part](arguments.work / part, folder)
        results = ROOT / "RESULTS.md"
        results.write_text(put_into(results.read_text(), part, table))


if __name__ == "__main__":
    main()
