"""`sparselens post-train`: a dense language model in, a sparse one with the same held-out loss out."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparselens.cli.options import Json
from sparselens.cli.table import finish, print_table, warn

if TYPE_CHECKING:
    from sparselens.evaluation import Evaluation
    from sparselens.result import PostTrainResult

COLUMNS = {
    "loss": ("loss, nats per token", "{:.4f}"),
    "share_of_visible_pairs": ("open, share of visible pairs", "{:.3%}"),
    "share_of_all_pairs": ("open, share of all pairs", "{:.3%}"),
    "edges_per_query_per_head": ("open edges per query and head", "{:.3f}"),
}


def post_train(
    model: Annotated[str, typer.Option(help="A folder, a shipped name (stories260k) or a hub id.")],
    data: Annotated[str, typer.Option(help="Text, JSON-lines, dataset folder or hub dataset id.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the model, the log and the checkpoint.")],
    dense: Annotated[
        str | None, typer.Option(help="If --model has been post-trained before: the dense model it came from.")
    ] = None,
    column: Annotated[str, typer.Option(help="Field that holds the text, in JSON lines and datasets.")] = "text",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 6000,
    target: Annotated[float | None, typer.Option(help="Loss not to exceed, nats per token; replaces --margin.")] = None,
    margin: Annotated[float, typer.Option(help="Target as the dense model's held-out loss plus this.")] = 0.01,
    gate_bias: Annotated[
        float | None,
        typer.Option(help="Added to the scores in the gate. Default: the model's, else 0; 3e4 is a dense control."),
    ] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens per row.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Rows per batch, over all processes.")] = 32,
    accumulation: Annotated[int, typer.Option(help="Batches per optimiser step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    multiplier: Annotated[float, typer.Option(help="GECO's multiplier at the start.")] = 1.0,
    distillation: Annotated[float, typer.Option(help="Share of the dense model's distribution in the labels.")] = 0.5,
    sampled: Annotated[int, typer.Option(help="Tokens to sample from the dense model; half of each batch.")] = 0,
    held_out: Annotated[float, typer.Option(help="Share of the documents kept out of training.")] = 0.1,
    mixed_precision: Annotated[str, typer.Option(help="no, bf16 or fp16.")] = "no",
    evaluate_every: Annotated[int, typer.Option(help="Steps between two looks at the held-out text.")] = 250,
    seed: Annotated[int, typer.Option(help="Of data order and noise.")] = 0,
    wandb: Annotated[str | None, typer.Option(help="Log to this wandb project.")] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="At most this long between two checkpoints.")] = 10.0,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for more time: layers are computed twice.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    json: Json = False,
) -> None:
    """Post-train a language model with sparse attention, and save it to OUT/model.

    Example: `sparselens post-train --model stories260k --data stories.txt --out sparse`

    Half of the held-out documents steer the run; the table is about the other half, which neither training nor
    selection has seen. Several processes: `accelerate launch -m sparselens post-train ...`. OUT/run.pdf shows the run.
    Ctrl-C writes a checkpoint and ends with exit code 130; the same command with --resume goes on from there.
    """
    from sparselens.attention import recompute_activations
    from sparselens.evaluation import evaluate, open_gates
    from sparselens.folder import load_transformers, save
    from sparselens.processes import accelerator_for
    from sparselens.surgery import sparsify
    from sparselens.text import read_documents, rows, split_documents
    from sparselens.training import PostTrainConfig
    from sparselens.training import post_train as run

    config = PostTrainConfig(
        steps=steps,
        target=target,
        margin=margin,
        learning_rate=learning_rate,
        accumulation=accumulation,
        mixed_precision=_precision(mixed_precision),
        multiplier=multiplier,
        distillation=distillation,
        evaluate_every=evaluate_every,
        seed=seed,
        wandb=wandb,
        checkpoint_minutes=checkpoint_minutes,
    )
    accelerator = accelerator_for(mixed_precision)
    split = split_documents(read_documents(data, column), held_out, seed)
    if (out / "checkpoint.pt").exists() and not resume:
        raise ValueError(f"{out} holds the checkpoint of a run: pass --resume to go on, or choose another folder")
    network, tokenizer, saved_bias = load_transformers(model)
    if saved_bias is not None and dense is None:
        raise ValueError(f"{model} is sparse already: name the dense model that it came from with --dense")
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer, so its text cannot be read")
    network.to(accelerator.device)
    reference = network if dense is None else load_transformers(dense)[0].to(accelerator.device)
    train, *others = (_tokens(part, tokenizer, network) for part in (split.train, split.validation, split.test))
    validation, test = (rows(tokens, seq_len, batch_size) for tokens in others)
    batches = _batches(reference, tokenizer, train, sampled, seq_len, batch_size, seed)
    sparsify(network, saved_bias if gate_bias is None else gate_bias)
    if gradient_checkpointing:
        recompute_activations(network)
    with open_gates(reference):
        before = evaluate(reference, test, accelerator=accelerator)
    try:
        result = run(
            network,
            batches,
            config,
            held_out=validation,
            dense=reference,
            out=out,
            resume=resume,
            accelerator=accelerator,
        )
    except KeyboardInterrupt as stop:
        if accelerator.is_main_process:
            _explain(stop, out)
        raise typer.Exit(130) from stop
    after = evaluate(network, test, accelerator=accelerator)
    if accelerator.is_main_process:
        folder = save(
            network,
            out / "model",
            tokenizer=tokenizer,
            base_model=dense or model,
            result=result,
            test=(before, after),
            command=_command(),
            figures=_draw(result, out),
        )
        _report(before, after, folder, result, json, out)


def _command() -> str:
    return shlex.join(["sparselens", *sys.argv[1:]])


def _explain(stop: KeyboardInterrupt, out: Path) -> None:
    words = str(stop).split(";")[0] or "stopped"
    goes_on = "the same command with --resume goes on from its last checkpoint"
    warn(f"{words}: {goes_on if (out / 'checkpoint.pt').exists() else 'there is no checkpoint yet'}")


def _draw(result: "PostTrainResult", out: Path) -> list[Path]:
    from sparselens.analyses import training_figure

    return [training_figure(result).save(out / f"run.{form}") for form in ("png", "pdf")]


def _precision(name: str) -> Any:
    if name not in ("no", "bf16", "fp16"):
        raise ValueError(f"mixed precision {name!r}: want no, bf16 or fp16")
    return name


def _tokens(documents: list[str], tokenizer: Any, network: Any) -> Any:
    from sparselens.text import tokenize

    tokens, known = tokenize(documents, tokenizer), network.get_input_embeddings().num_embeddings
    if len(tokens) and int(tokens.max()) >= known:
        highest = int(tokens.max())
        raise ValueError(f"the model has {known} tokens, its tokenizer gave {highest}: the two do not belong together")
    return tokens


def _batches(network: Any, tokenizer: Any, tokens: Any, sampled: int, seq_len: int, batch_size: int, seed: int) -> Any:
    """Training batches: of the text alone, or half of it and half of text sampled from the dense model."""
    from sparselens.text import MixedBatches, TokenBatches, sample_tokens

    if not sampled:
        return TokenBatches(tokens, seq_len, batch_size, seed)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    own = sample_tokens(network, sampled, start or 0, seed=seed)
    half = batch_size // 2
    return MixedBatches(
        [TokenBatches(tokens, seq_len, batch_size - half, seed), TokenBatches(own, seq_len, half, seed + 1)]
    )


def _report(
    dense: "Evaluation", sparse: "Evaluation", folder: Path, result: "PostTrainResult", json: bool, out: Path
) -> None:
    table = {name: {key: getattr(e, key) for key in COLUMNS} for name, e in (("dense", dense), ("sparse", sparse))}
    print_table(
        "On text kept out of training" + ("" if result.feasible else " (the target was NOT met)"),
        ("", "dense", "sparse"),
        [
            (label, form.format(table["dense"][key]), form.format(table["sparse"][key]))
            for key, (label, form) in COLUMNS.items()
        ],
    )
    print_table(
        "Saved", ("what", "where"), [("model", folder), ("log", out / "log.jsonl"), ("figure", out / "run.pdf")]
    )
    for note in result.notes:
        warn(f"warning: {note}")
    finish(
        {**table, "feasible": result.feasible, "notes": result.notes, "model": str(folder)},
        json,
        out / "post-train.json",
    )
