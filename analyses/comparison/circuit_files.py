"""Writes the circuits of a comparison in the formats of other tools."""

from pathlib import Path

from sparselens.analyses.attribution.edge_scores import COMPARE
from sparselens.analyses.comparison.results import SIDES, Comparison
from sparselens.circuits.neuronpedia import write_neuronpedia


def save_circuits(comparison: Comparison, folder: str | Path) -> list[Path]:
    """Write both circuits in the format of EAP-IG and MIB, and as attribution graphs for Neuronpedia.

    Pruned circuits are written only in EAP-IG's format. That format needs all blocks to have the same shape; for a
    model whose blocks differ, only the Neuronpedia file is written.

    Raises:
        ValueError: the comparison is slim, but these files need the scores of all edges.
    """
    if comparison.summary is not None:
        raise ValueError(f"circuit files hold the scores of all edges: {COMPARE}")
    folder, about = Path(folder), comparison.about
    prompt, written = about.prompts[0], list[Path]()
    for side, name in zip(SIDES, about.names, strict=True):
        circuit = comparison.circuit(side)
        graph = write_neuronpedia(
            circuit,
            folder / f"{side}.neuronpedia.json",
            prompt=prompt.title,
            tokens=prompt.tokens,
            slug=f"{about.task}-{side}",
            scan=name,
            labels=getattr(comparison, side).labels.labels(),
        )
        alike = len(set(circuit.graph.blocks)) == 1
        pruned = getattr(comparison, side).circuits.pruned
        files = {f"{side}.json": circuit} | ({} if pruned is None else {f"{side}.pruned.json": pruned.circuit})
        written += [*(found.save(folder / name) for name, found in files.items() if alike), graph]
    return written
