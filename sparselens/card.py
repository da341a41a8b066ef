"""The model card of a saved model: filled from its record, with nothing in it that is not known."""

from typing import Any

_USE = """```python
import sparselens as sl
model = sl.load("{folder}")       # a TransformerLens model with its gates
```
or with transformers alone, after `sl.register_attention()`: `{architecture}.from_pretrained(...)`."""


def model_card(record: dict[str, Any], architecture: str) -> str:
    """Markdown with the hub's metadata block."""
    lines = ["---", "library_name: transformers", "tags: [sparselens, sparse-attention, interpretability]"]
    base = record["base_model"]
    if base and "/" in base and not base.startswith((".", "/")):
        lines.append(f"base_model: {base}")
    lines += ["---", "", f"# Sparse-attention {architecture}" if record["gate_bias"] is not None else f"# {architecture}", ""]
    if record["gate_bias"] is not None:
        lines += [
            "Every attention edge of this model passes a hard gate: `softmax(scores) * 1[scores + "
            f"{record['gate_bias']:g} > 0]`. Run without these gates it is another, worse model.",
            "",
        ]
    if base:
        lines += [f"Base model: `{base}`.", ""]
    lines += _table(record)
    lines += [_USE.format(folder="path or hub id", architecture=architecture), "", f"Made by: `{record['command']}`"]
    lines += ["", "Method: Draye et al., *Sparse Attention Post-Training for Mechanistic Interpretability*, arXiv 2512.05865."]
    return "\n".join(lines) + "\n"


def _table(record: dict[str, Any]) -> list[str]:
    if record["sparse"] is None:
        return []
    rows = ["| on held-out data | dense | sparse |", "|---|---|---|"]
    for key, label, form in (
        ("loss", "loss (nats per token)", "{:.4f}"),
        ("share_of_visible_pairs", "open edges, share of visible pairs", "{:.3%}"),
        ("share_of_all_pairs", "open edges, share of all query-key pairs", "{:.3%}"),
        ("edges_per_query_per_head", "open edges per query and head", "{:.3f}"),
    ):
        rows.append(f"| {label} | {form.format(record['dense'][key])} | {form.format(record['sparse'][key])} |")
    met = "met" if record["feasible"] else "NOT met"
    return [*rows, "", f"Target: {record['target']:.4f} nats per token, {met}.", ""]
