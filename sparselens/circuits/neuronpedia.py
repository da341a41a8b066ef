"""Writes circuits as the JSON attribution graphs of Neuronpedia's and circuit-tracer's viewers, and reads them back.

1. The schema requires metadata (slug, scan, prompt, prompt_tokens), qParams, nodes (node_id, feature, layer, ctx_idx,
   feature_type, jsNodeId, clerp) and links (source, target, weight).
2. To make the circuit readable again, its graph and scores are added under `sparselens`, and every link into a head
   names its receivers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from sparselens.circuits.circuit import Circuit
from sparselens.circuits.graph import INPUT, LOGITS, Block, Graph
from sparselens.files.whole import write_file

_OWN = "sparselens"  # a key that the schema does not define but allows


def write_neuronpedia(
    circuit: Circuit,
    path: str | PathLike[str],
    *,
    prompt: str,
    tokens: Sequence[str],
    slug: str,
    scan: str,
    answer: tuple[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Path:
    """Write a circuit as an attribution graph; returns the path.

    >>> write_neuronpedia(circuit, "graph.json", prompt=text, tokens=tokens, slug="ioi", scan="gpt2")

    Heads, MLPs, input and logits become nodes. All are placed at the last token, since scores are summed over positions
    (so the viewer labels the input with the last token). A link's weight is the score of its edge; for a link into a
    head, the sum over the receivers q, k and v in the circuit. The viewer draws nothing if all nodes are in layer 0.

    Args:
        prompt: shown with the graph; for scores averaged over prompts, one of them
        tokens: the prompt's tokens
        slug: name of the graph in its URL
        scan: name of the model
        answer: the answer token and its probability
        labels: shown after the names of nodes, for example `analyses.label_heads(model).labels()`

    Raises:
        ValueError: a name is empty, there are no tokens, a score is not finite, or a label names no node.
    """
    for name, value in (("slug", slug), ("scan", scan), ("tokens", tokens)):
        if not value:
            raise ValueError(f"{name} must not be empty")
    if not circuit.scores.isfinite().all():
        raise ValueError("scores are not finite")
    graph, labels = circuit.graph, labels or {}
    for name in labels:
        if name != LOGITS:
            graph.source(name)
    links = _links(circuit)
    used = {INPUT, LOGITS, *(link[end] for link in links for end in ("source", "target"))}
    names = [name for name in (*graph.sources, LOGITS) if name in used]
    data = {
        "metadata": {"slug": slug, "scan": scan, "prompt": prompt, "prompt_tokens": list(tokens)},
        "qParams": {"pinnedIds": names, "supernodes": [], "linkType": "both", "clickedId": LOGITS, "sg_pos": ""},
        "nodes": [_node(graph, name, len(tokens) - 1, answer, labels.get(name)) for name in names],
        "links": links,
        _OWN: {
            "blocks": [asdict(block) for block in graph.blocks],
            "scores": circuit.scores.detach().cpu().double()[graph.exists].tolist(),
        },
    }
    return write_file(Path(path), json.dumps(data, allow_nan=False).encode())


def _node(graph: Graph, name: str, last: int, answer: tuple[str, float] | None, label: str | None) -> dict[str, Any]:
    layer, feature, kind = _place(graph, name)
    clerp = name if label is None else f"{name}: {label}"
    more: dict[str, Any] = {}
    if name == LOGITS:  # the viewer expects a probability in the label, or no label
        clerp = f'Output "{answer[0]}" (p={answer[1]:.3f})' if answer else ""
        more = {"is_target_logit": True, "token_prob": answer[1] if answer else 0.0}
    return {
        "node_id": name,
        "feature": feature,
        "layer": layer,
        "ctx_idx": last,
        "feature_type": kind,
        "jsNodeId": name,
        "clerp": clerp,
        **more,
    }


def _place(graph: Graph, name: str) -> tuple[str, int, str]:
    """Layer, index within the layer (an MLP comes after the heads), and type of a node."""
    if name == INPUT:
        return "E", 0, "embedding"
    if name == LOGITS:
        return str(len(graph.blocks)), 0, "logit"
    layer, _, head = name[1:].partition(".h")
    if head:
        return layer, int(head), "attention head"
    return layer, graph.blocks[int(layer)].n_heads, "mlp"


def _links(circuit: Circuit) -> list[dict[str, Any]]:
    """One link for each pair of nodes connected by edges of the circuit."""
    links: dict[tuple[str, str], dict[str, Any]] = {}
    for name in circuit.edges:
        source, _, destination = name.partition("->")
        target, _, receiver = destination.rstrip(">").partition("<")
        link = links.setdefault((source, target), {"source": source, "target": target, "weight": 0.0})
        link["weight"] += float(circuit.scores[circuit.graph.edge(name)])
        if receiver:
            link.setdefault("receivers", []).append(receiver)
    return list(links.values())


def read_neuronpedia(path: str | PathLike[str]) -> Circuit:
    """Read a circuit that `write_neuronpedia` wrote, with the scores of all edges of its graph.

    >>> read_neuronpedia("graph.json").edges

    Raises:
        ValueError: the file is damaged, was not written by `write_neuronpedia`, or names an edge that does not exist.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if _OWN not in data:
            raise ValueError(f'it has no "{_OWN}" entry, which describes the heads and MLPs of the model')
        graph = Graph(tuple(Block(**block) for block in data[_OWN]["blocks"]))
        kept = graph.matrix([name for link in data["links"] for name in _edges(link)])
        scores = torch.zeros(graph.exists.shape)
        scores[graph.exists] = torch.tensor(data[_OWN]["scores"], dtype=scores.dtype)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # RecursionError is a RuntimeError
        raise ValueError(f"{path} holds no circuit written by write_neuronpedia: {error}") from error
    return Circuit(graph, kept, scores)


def _edges(link: Mapping[str, Any]) -> list[str]:
    edge = f"{link['source']}->{link['target']}"
    return [f"{edge}<{receiver}>" for receiver in link["receivers"]] if "receivers" in link else [edge]
