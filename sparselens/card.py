"""The model card of a saved model: filled from its record, with nothing in it that is not known."""

from collections.abc import Sequence
from typing import Any

_METHOD = "Draye et al., *Sparse Attention Post-Training for Mechanistic Interpretability*, arXiv 2512.05865"
_USE = """```python
import sparselens as sl
model = sl.load("path or hub id")  # a TransformerLens model{gates}
```
or with transformers alone{register}: `{architecture}.from_pretrained(...)`."""
_GATES = (
    "Every attention edge of this model passes a hard gate: `softmax(scores) * 1[scores + {gate_bias:g} > 0]`. "
    "Run without these gates it is another, worse model."
)
_NUMBERS = (
    ("loss", "loss (nats per token)", "{:.4f}"),
    ("share_of_visible_pairs", "open edges, share of visible pairs", "{:.3%}"),
    ("share_of_all_pairs", "open edges, share of all query-key pairs", "{:.3%}"),
    ("edges_per_query_per_head", "open edges per query and head", "{:.3f}"),
)


def model_card(record: dict[str, Any], architecture: str, pictures: Sequence[str] = ()) -> str:
    """Markdown with the hub's metadata block. `pictures` are files beside the card, of the run that made the model."""
    base, gate_bias = record["base_model"], record["gate_bias"]
    sparse = gate_bias is not None
    parts = [
        _metadata(base, sparse),
        f"# Sparse-attention {architecture}" if sparse else f"# {architecture}",
        _GATES.format(gate_bias=gate_bias) if sparse else "",
        f"Base model: `{base}`." if base else "",
        _table(record),
        _target(record),
        *(f"![Post-training: loss and open edges step by step]({name})" for name in pictures),
        _USE.format(
            architecture=architecture,
            gates=" with its gates" if sparse else "",
            register=", after `sl.register_attention()`" if sparse else "",
        ),
        f"Made by: `{record['command']}`",
        f"Method: {_METHOD}." if sparse else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(base: str | None, sparse: bool) -> str:
    tags = "[sparselens, sparse-attention, interpretability]" if sparse else "[sparselens, interpretability]"
    lines = ["---", "library_name: transformers", f"tags: {tags}"]
    if base and base.count("/") == 1 and not base.startswith((".", "/")):  # the hub takes ids here, not paths
        lines.append(f"base_model: {base}")
    return "\n".join([*lines, "---"])


def _table(record: dict[str, Any]) -> str:
    dense, sparse = record["dense"], record["sparse"]
    if sparse is None:
        return ""
    rows = [f"| {label} | {form.format(dense[key])} | {form.format(sparse[key])} |" for key, label, form in _NUMBERS]
    return "\n".join(["| on held-out data | dense | sparse |", "|---|---|---|", *rows])


def _target(record: dict[str, Any]) -> str:
    if record["target"] is None:
        return ""
    return f"Target: {record['target']:.4f} nats per token, {'met' if record['feasible'] else 'NOT met'}."
