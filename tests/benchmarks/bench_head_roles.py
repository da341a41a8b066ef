"""Which heads play which role in IOI, in a dense and a sparse model, and what is lost without them.

    python tests/benchmarks/bench_head_roles.py --dense FOLDER --sparse FOLDER -n 30 --figure roles.png

Prints two markdown tables. Roles are those of `head_roles`: attention at the named positions, direct effect, paths.
Knockouts go both ways, by faithfulness: every edge out of the heads of a role ablated (what is left without them), and
every edge out of all other heads ablated (what they do alone, with the MLPs). The heads of each model's roles are
knocked out in both models.
"""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import sparselens as sl
from sparselens.analyses import HeadRoles, faithfulness, head_roles
from sparselens.analyses.figures.palette import MODELS
from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import Graph
from sparselens.prompts.intervals import Interval
from sparselens.tasks import TASKS

SIDES = ("dense", "sparse")
PER_ROLE = 6  # heads that a picture shows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for side in SIDES:
        parser.add_argument(f"--{side}", required=True)
    parser.add_argument("--base", help="of a sparse model that is an adapter; default: what it names")
    parser.add_argument("-n", type=int, default=30, help="pairs to draw; those that both models solve are used")
    parser.add_argument("--figure", type=Path)
    asked = parser.parse_args()
    base = {} if asked.base is None else {"base": asked.base}
    models = {"dense": sl.load(asked.dense), "sparse": sl.load(asked.sparse, **base)}
    able = [sl.evaluate(model, TASKS["ioi"], asked.n, progress=False) for model in models.values()]
    pairs = able[0].pairs[torch.stack([found.correct for found in able]).all(0).nonzero().flatten()]
    found = {side: head_roles(model, pairs) for side, model in models.items()}
    print(f"{len(pairs)} of {asked.n} pairs\n\n{table_of_roles(found)}\n", flush=True)
    if asked.figure:
        draw(found, asked.figure)
    print(table_of_knockouts(models, found, pairs))


def table_of_roles(found: Mapping[str, HeadRoles]) -> str:
    lines = ["| role | dense | sparse | in both |", "|---|---|---|---|"]
    for role in found["dense"].roles:
        heads = [found[side].roles[role] for side in SIDES]
        both = [head for head in heads[0] if head in heads[1]]
        lines.append(f"| {role} | {' | '.join(f'{len(some)}: {listed(some)}' for some in (*heads, both))} |")
    return "\n".join(lines)


def listed(heads: Sequence[str]) -> str:
    more = f", {len(heads) - PER_ROLE} more" if len(heads) > PER_ROLE else ""
    return ", ".join(heads[:PER_ROLE]) + more


def table_of_knockouts(models: Mapping[str, Any], found: Mapping[str, HeadRoles], pairs: Any) -> str:
    lines = ["| heads of this role | as found in | dense without them | alone | sparse without them | alone |"]
    lines.append("|---|---|---|---|---|---|")
    for role in found["dense"].roles:
        for side in SIDES:
            if heads := found[side].roles[role]:
                cells = [str(f) for model in models.values() for f in knocked_out(model, pairs, heads)]
                lines.append(f"| {role}, {len(heads)} | {side} | {' | '.join(cells)} |")
                print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def knocked_out(model: Any, pairs: Any, heads: Collection[str]) -> list[Interval]:
    """Faithfulness without these heads, and with no other head."""
    graph = Graph.of_model(model)
    of_heads = torch.tensor([name in heads for name in graph.sources])
    other = torch.tensor([name.startswith("a") and name not in heads for name in graph.sources])
    circuits = [Circuit(graph, graph.exists & ~out[:, None], graph.exists.float()) for out in (of_heads, other)]
    return [faithfulness(model, circuit, pairs, progress=False).interval() for circuit in circuits]


def draw(found: Mapping[str, HeadRoles], path: Path) -> None:
    """Every head that has a role in either model: its attention along the role's link, and its direct effect."""
    import matplotlib.pyplot as plt

    links = {"name mover": "END->IO", "S-inhibition": "END->S2", "duplicate token": "S2->S1", "induction": "S2->S1+1"}
    heads = {role: heads_of(role, found) for role in links}
    widths = [1 + len(some) for some in heads.values()]
    figure, axes = plt.subplots(
        1, len(links), figsize=(11, 3.2), sharey=True, layout="constrained", width_ratios=widths
    )
    for axis, (role, link) in zip(axes, links.items(), strict=True):
        for side in SIDES:
            ink, values = MODELS[side], [found[side][head][link] for head in heads[role]]
            axis.plot(values, ls="", marker=ink.marker, mfc="white", color=ink.light, label=side, ms=7)
            has = [at for at, head in enumerate(heads[role]) if role in found[side].roles_of(head)]
            axis.plot(has, [values[at] for at in has], ls="", marker=ink.marker, color=ink.light, ms=7)
        axis.set(title=f"{role}:\n{link}", ylim=(-0.03, 1.03), xlim=(-0.7, len(heads[role]) - 0.3))
        axis.set_xticks(range(len(heads[role])), heads[role], rotation=60, ha="right")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean attention")
    shown, labels = axes[0].get_legend_handles_labels()
    figure.legend(shown, labels, loc="outside right upper", title="filled: has the role", frameon=False)
    figure.savefig(path, dpi=160)


def heads_of(role: str, found: Mapping[str, HeadRoles]) -> list[str]:
    """The first heads with this role in either model, layer by layer."""
    named = {head for side in SIDES for head in found[side].roles[role][:PER_ROLE]}
    return sorted(named, key=lambda head: [int(part) for part in head[1:].split(".h")])


if __name__ == "__main__":
    main()
