"""The model card of a saved model, filled from its record; what is unknown is left out."""

from collections.abc import Sequence
from typing import Any

_METHOD = "Draye et al., *Sparse Attention Post-Training for Mechanistic Interpretability*, arXiv 2512.05865"
_USE = """```python
import sparselens as sl
model = sl.load("path or hub id")  # a TransformerLens model{gates}
```
{otherwise}."""
_WHOLE = "or with transformers alone{register}: `{architecture}.from_pretrained(...)`"
_ADAPTER = "or with peft alone{register}: `PeftModel.from_pretrained(base, ...)`"
_GATES = (
    "Every attention edge of this model passes a hard gate: `softmax(scores) * 1[scores + {gate_bias:g} > 0]`. "
    "Without these gates it is a different, worse model."
)
_NUMBERS = (
    ("loss", "loss (nats per token)", "{:.4f}"),
    ("share_of_visible_pairs", "open edges, share of visible pairs", "{:.3%}"),
    ("share_of_all_pairs", "open edges, share of all query-key pairs", "{:.3%}"),
    ("edges_per_query_per_head", "open edges per query and head", "{:.3f}"),
)


def model_card(record: dict[str, Any], architecture: str, adapter: bool = False, pictures: Sequence[str] = ()) -> str:
    """The card as Markdown, with the hub's metadata block.

    Args:
        adapter: whether the folder holds adapters of the base model instead of a whole model
        pictures: names of picture files in the card's folder, showing the run that made the model
    """
    base, gate_bias = record["base_model"], record["gate_bias"]
    sparse = gate_bias is not None
    parts = [
        _metadata(base, sparse, adapter),
        ("# Sparse-attention " if sparse else "# ") + architecture + (" (adapters)" if adapter else ""),
        _GATES.format(gate_bias=gate_bias) if sparse else "",
        f"Base model: `{base}`." if base else "",
        _table(record),
        _target(record),
        *(f"![Post-training: loss and open edges step by step]({name})" for name in pictures),
        _USE.format(gates=" with its gates" if sparse else "", otherwise=_otherwise(architecture, gate_bias, adapter)),
        f"Made by: `{record['command']}`" if record["command"] else "",
        f"Method: {_METHOD}." if sparse else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _otherwise(architecture: str, gate_bias: float | None, adapter: bool) -> str:
    """How to open the model without `sl.load`."""
    if adapter:
        register = "" if gate_bias is None else f", after `sl.sparsify(base, gate_bias={gate_bias:g})`"
        return _ADAPTER.format(register=register)
    return _WHOLE.format(
        register="" if gate_bias is None else ", after `sl.register_attention()`", architecture=architecture
    )


def _metadata(base: str | None, sparse: bool, adapter: bool) -> str:
    tags = "[sparselens, sparse-attention, interpretability]" if sparse else "[sparselens, interpretability]"
    lines = ["---", f"library_name: {'peft' if adapter else 'transformers'}", f"tags: {tags}"]
    if base and base.count("/") == 1 and not base.startswith((".", "/")):  # the hub accepts ids here, not paths
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
    met = "met" if record["feasible"] else "NOT met"
    return f"Target on the data that steered the run: {record['target']:.4f} nats per token, {met}."
