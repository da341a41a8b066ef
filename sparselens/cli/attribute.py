"""`sparselens attribute`: which edges of a model matter for a task, and how faithful the circuit they form is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sparselens.cli import options
from sparselens.cli.models import bases
from sparselens.cli.options import Json, alone_in_out, over_launched_processes
from sparselens.cli.own_tasks import task_named
from sparselens.cli.table import finish, finite_ends, print_table, warn, with_interval
from sparselens.files.reading import json_object

if TYPE_CHECKING:
    from sparselens.analyses.attribution.edge_scores import EdgeScores
    from sparselens.analyses.circuits.circuit_runs import Faithfulness
    from sparselens.analyses.circuits.pruning import PrunedCircuit
    from sparselens.circuits.circuit import Circuit

SHOWN = 30  # edges in the table
CARD, UNFINISHED = "attribute.json", "attribute.unfinished"


@alone_in_out
@over_launched_processes
def attribute(
    model: options.Model,
    task: options.Task,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the circuit and the scores.")],
    base: options.Base = None,
    method: options.Method = "eap-ig",
    steps: options.Steps = 5,
    gate_gradient: options.GateGradient = "none",
    n: Annotated[int, typer.Option("-n", min=1, help="Pairs to draw; only those the model solves are used.")] = 100,
    all_pairs: Annotated[bool, typer.Option("--all", help="Also use the pairs that the model gets wrong.")] = False,
    seed: options.Seed = 0,
    corruption: options.Corruption = None,
    metric: options.Metric = None,
    share: options.Share = 0.9,
    goal: options.Goal = 0.8,
    ablation: options.Ablation = "corrupted",
    prune_runs: options.PruneRuns = None,
    batch_size: options.BatchSize = None,
    memory: options.Memory = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run in --out.")] = False,
    json: Json = False,
) -> None:
    """Score every edge of a model on a task; write a faithful circuit, a pruned version of it, and the paper's circuit.

    Example: `sparselens attribute --model addition-sparse --task addition --out circuit`

    Writes `circuit.html` (the circuits and the model's attention, to explore offline) and three circuits in EAP-IG's
    file format, with all mean scores: `faithful.json` (the smallest number of top-scoring edges that reaches --goal),
    `pruned.json` (the same without dispensable edges, selected on half of the pairs) and `share.json` (the paper's
    rule); also `scores.safetensors` (scores for each prompt) and `attribute.json` (the printed results). `sparselens
    figures` and `sparselens report` read these files without the model. Finished batches are kept in
    `attribute.unfinished` until the run is complete; `--resume` continues from there. To split the pairs over several
    processes, with the same result, use `accelerate launch -m sparselens attribute ...`.
    """
    known = task_named(task)
    known.find_corruption(corruption)  # before torch is loaded
    from sparselens.analyses import attribute_edges
    from sparselens.analyses.engine.processes import place, rank
    from sparselens.analyses.engine.request import OpenModel
    from sparselens.models.folder import load
    from sparselens.prompts.capability import evaluate
    from sparselens.prompts.metrics import find_metric, name_of

    asked = {"model": model, "task": known.fingerprint(n, seed, corruption)}
    if rank() == 0:
        _refuse_other_run(out, asked, resume)
    measure = find_metric(metric or known.metric)
    opened = load(model, **bases(base, model)[model], **place())
    found = evaluate(opened, known, n, seed, corruption=corruption)
    if not all_pairs and not found.correct.any():
        raise ValueError(f"{model} solves none of {n} pairs of {task!r}: choose another task, or pass --all")
    pairs = found.pairs if all_pairs else found.pairs[found.correct]
    shared: Any = OpenModel(opened)
    settings = _Settings(share, goal, ablation, prune_runs, seed, options.budget(memory, batch_size))
    how: dict[str, Any] = {**settings.budget, "gate_gradient": gate_gradient, "out": out / UNFINISHED}
    scores = attribute_edges(shared, pairs, measure, method, steps, **how)
    circuits = _find_circuits(shared, pairs, measure, scores, settings)
    if rank() > 0:
        return
    summary = {
        **asked,
        "description": known.description,
        "drawn": n,
        "pairs": len(pairs),
        "clean_prompts": len(set(pairs.clusters())),
        "solved": int(found.correct.sum()),
        "metric": name_of(metric or known.metric),
        "clean": float(scores.clean.mean()),
        "corrupted": float(scores.corrupted.mean()),
        "method": scores.method,
        "ablation": ablation,
        "edges": scores.graph.n_edges,
        "circuits": circuits.table,
    }
    title, name = f"{model}: {known.description}", Path(model).name
    files = _write(circuits, scores, out)
    files.append(_view(opened, pairs, scores, circuits, ablation, title, name).save_html(out / "circuit.html"))
    _print(summary, scores, circuits)
    print_table("Written; open circuit.html in a browser", ("where",), [(file,) for file in files])
    finish(summary, json, out / CARD)


def _refuse_other_run(out: Path, asked: dict[str, str], resume: bool) -> None:
    """Raise a ValueError if the folder holds an interrupted run, or results for another model or task."""
    if (out / UNFINISHED).exists() and not resume:
        raise ValueError(f"{out} holds an interrupted run: pass --resume to continue it, or choose a different --out")
    if (out / CARD).exists():
        there = json_object((out / CARD).read_bytes(), out / CARD)
        for name, wanted in asked.items():
            if there.get(name) != wanted:
                raise ValueError(
                    f"{out} holds the circuit of another {name}, {there.get(name)!r} instead of {wanted!r}: choose a "
                    "different --out, or delete the folder"
                )


class _Settings(NamedTuple):
    """Settings for selecting circuits."""

    share: float
    goal: float
    ablation: str
    prune_runs: int | None
    seed: int
    budget: dict[str, Any]


class _Circuits(NamedTuple):
    """The circuits of one model, and their faithfulness for printing."""

    by_share: "Circuit"
    faithful: "Circuit"
    reached: tuple[int, float] | None  # edges and faithfulness of the faithful circuit; None: goal not reached
    pruned: "PrunedCircuit | None"
    table: dict[str, dict[str, Any]]


def _find_circuits(model: Any, pairs: Any, metric: Any, scores: "EdgeScores", settings: _Settings) -> _Circuits:
    """Circuits by the paper's rule and by faithfulness, its pruned version, and random circuits of the same size."""
    from sparselens.analyses import pruned_circuit, random_connected_circuits
    from sparselens.analyses.circuits.circuit_runs import CircuitRunner
    from sparselens.analyses.circuits.search import search
    from sparselens.analyses.engine.request import open_request

    share, goal, ablation, prune_runs, seed, budget = settings
    with open_request(model, pairs, metric, **budget, progress=True) as request:
        runner = CircuitRunner(request, scores.graph, ablation)
        faithful, alone = search(runner, scores, goal, progress=True)
        by_share, chance = scores.smallest(share), random_connected_circuits(faithful, seed=seed)
        found_by_share, *found_by_chance = runner.run([by_share, *chance])
    table = {
        f"{share:.0%} of all |scores|": _summary(by_share, found_by_share),
        f"{goal:.0%} faithful": _summary(faithful, alone),
    }
    pruned = None
    if prune_runs != 0 and len(set(pairs.clusters())) > 1:
        pruned = pruned_circuit(model, pairs, scores, metric, goal, ablation, runs=prune_runs, seed=seed, **budget)
    if pruned is not None:
        table[f"{goal:.0%} faithful, pruned; on held-out pairs"] = _summary(pruned.circuit, pruned.held_out) | {
            "untested": pruned.untested
        }
    table[f"{len(chance)} random connected circuits [lowest, highest]"] = _spread(chance[0], found_by_chance)
    reached = (len(faithful), alone.mean) if alone.mean >= goal else None
    return _Circuits(by_share, faithful, reached, pruned, table)


def _write(circuits: _Circuits, scores: "EdgeScores", out: Path) -> list[Path]:
    """Write the scores and the circuits, and remove the finished batches."""
    from sparselens.analyses.comparison.attributed import PRUNED, SCORES, save_scores

    files = [circuits.by_share.save(out / "share.json"), circuits.faithful.save(out / "faithful.json")]
    files.append(save_scores(scores, out / SCORES))
    (out / PRUNED).unlink(missing_ok=True)  # from an earlier run
    if circuits.pruned is not None:
        files.append(circuits.pruned.circuit.save(out / PRUNED))
    for file in out.glob(f"{UNFINISHED}*"):  # none if there was only one batch
        file.unlink()
    return files


def _view(
    model: Any,
    pairs: Any,
    scores: "EdgeScores",
    circuits: _Circuits,
    ablation: str,
    title: str,
    name: str,
) -> Any:
    """The circuit viewer, with the model's attention on the first prompts."""
    from sparselens.analyses import attention_edges, circuit_viewer, label_heads
    from sparselens.analyses.comparison.caveats import first_of_one_length, prompts_of
    from sparselens.analyses.comparison.plots import edges_needed_of_one

    shown = first_of_one_length(pairs)
    prompts = prompts_of(shown)
    return circuit_viewer(
        scores,
        faithful=[circuits.reached],
        pruned=[circuits.pruned],
        ablation=ablation,
        names=[name],
        title=title,
        attention=attention_edges(model.eval(), shown),
        tokens=[prompt.tokens for prompt in prompts],
        titles=[prompt.title for prompt in prompts],
        labels=label_heads(model).labels(),
        plots=[edges_needed_of_one(scores, name)],
    )


def _summary(circuit: "Circuit", kept: "Faithfulness") -> dict[str, Any]:
    interval = kept.interval()
    return {"edges": len(circuit), "faithfulness": interval.mean, "interval": finite_ends(interval)}


def _spread(circuit: "Circuit", drawn: "Sequence[Faithfulness]") -> dict[str, Any]:
    """Mean and range of faithfulness of random circuits with the size of `circuit`."""
    means = [found.mean for found in drawn]
    return {"edges": len(circuit), "faithfulness": sum(means) / len(means), "interval": [min(means), max(means)]}


def _print(summary: dict[str, Any], scores: "EdgeScores", circuits: _Circuits) -> None:
    from sparselens.analyses.comparison.attributed import PRUNED
    from sparselens.prompts.intervals import FEW

    print_table(
        f"{summary['model']}, {summary['task']}, {summary['method']}",
        ("", ""),
        [
            ("pairs", f"{summary['pairs']} of {summary['drawn']} drawn ({summary['solved']} solved)"),
            ("different clean prompts", str(summary["clean_prompts"])),
            (f"{summary['metric']}, clean", f"{summary['clean']:.3f}"),
            (f"{summary['metric']}, corrupted", f"{summary['corrupted']:.3f}"),
        ],
    )
    rows = [
        (name, c["edges"], with_interval(c["faithfulness"], c["interval"], 3))
        for name, c in summary["circuits"].items()
    ]
    print_table("Circuits", ("selected by", f"edges (of {summary['edges']})", "faithfulness"), rows)
    if (few := summary["clean_prompts"]) < FEW:
        warn(f"only {few} different clean prompts: intervals may be too narrow; use at least {FEW} (-n)")
    for name, c in summary["circuits"].items():
        if c.get("untested"):
            warn(f"{name}: {c['untested']} of {c['edges']} edges were not tested individually (--prune-runs)")
    pruned = circuits.pruned
    found, name, file = (
        (circuits.faithful, "faithful", "faithful.json") if pruned is None else (pruned.circuit, "pruned", PRUNED)
    )
    largest = sorted(found, key=lambda edge: -abs(scores[edge]))
    intervals = [(edge, scores.interval(edge)) for edge in largest[:SHOWN]]
    shown = [(edge, with_interval(i.mean, finite_ends(i), 4)) for edge, i in intervals]
    shown += [(f"and {len(largest) - SHOWN} more", f"in {file}")] if largest[SHOWN:] else []
    title = f"The {name} circuit; positive scores: corrupting the edge lowers the metric"
    print_table(title, ("edge", "score"), shown)
