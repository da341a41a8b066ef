"""`sparselens post-train`: make a dense language model sparse, at the same held-out loss."""

import shlex
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from sparselens.cli.models import bases
from sparselens.cli.options import PARTS, Base, Json, Model, alone_in_out, at_least, known_model, one_of
from sparselens.cli.table import warn
from sparselens.cli.trained import print_result

Settings = TypeVar("Settings")

if TYPE_CHECKING:
    from sparselens.training.result import PostTrainResult


@alone_in_out
def post_train(
    model: Model,
    data: Annotated[str, typer.Option(help="Text file, JSON-lines file, dataset folder or hub dataset id.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the model, log and checkpoint.")],
    dense: Annotated[
        str | None,
        typer.Option(help="If --model is already sparse: the dense model it was made from.", callback=known_model),
    ] = None,
    base: Base = None,
    gguf_file: Annotated[str | None, typer.Option(help="Load this GGUF file of --model, dequantised.")] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK",
            help="Train LoRA adapters of this rank on q, k, v and o; freeze all other weights.",
            callback=at_least("--lora", 1),
        ),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="With --lora: save the merged model, not adapters.")] = False,
    train: Annotated[
        str,
        typer.Option(
            help="Which weights to train: attention, qk (queries, keys) or all.", callback=one_of("part", PARTS)
        ),
    ] = "all",
    column: Annotated[str, typer.Option(help="Field that holds the text, in JSON lines and datasets.")] = "text",
    split: Annotated[str, typer.Option(help="Split to read, if --data is a dataset.")] = "train",
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Hold out the first documents, then read only as many as the run needs."),
    ] = False,
    steps: Annotated[int, typer.Option(help="Optimiser steps.", callback=at_least("--steps", 1))] = 3000,
    target: Annotated[
        float | None, typer.Option(help="Largest allowed loss, in nats per token; replaces --margin.")
    ] = None,
    margin: Annotated[float, typer.Option(help="The target is the dense model's held-out loss plus this.")] = 0.0,
    gate_bias: Annotated[
        float | None,
        typer.Option(
            help="Added to the attention scores in the gates. Default: the model's own, else 0; 3e4 keeps every gate "
            "open (dense control)."
        ),
    ] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens per row.", callback=at_least("--seq-len", 2))] = 64,
    batch_size: Annotated[
        int, typer.Option(help="Rows per batch, over all processes.", callback=at_least("--batch-size", 1))
    ] = 32,
    accumulation: Annotated[
        int, typer.Option(help="Batches per optimiser step.", callback=at_least("--accumulation", 1))
    ] = 1,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens per optimiser step; replaces --accumulation. They come in equal batches of at most "
            "--batch-size rows, so a step may have a few rows more."
        ),
    ] = None,
    learning_rate: Annotated[
        str,
        typer.Option(
            help="Peak learning rate. auto: the largest that does not damage the model while all gates are open."
        ),
    ] = "auto",
    control_steps: Annotated[
        int,
        typer.Option(help="Steps of the dense control, at most a tenth of --steps; 0 skips it if a rate is given."),
    ] = 50,
    layerwise_steps: Annotated[
        int, typer.Option(help="Cheap initial steps that match the dense model's attention layer by layer.")
    ] = 0,
    multiplier: Annotated[float, typer.Option(help="Initial value of GECO's multiplier.")] = 10.0,
    distillation: Annotated[
        float, typer.Option(help="Weight of the dense model's predictions in the labels, 0 to 1.")
    ] = 0.5,
    sampled: Annotated[
        int,
        typer.Option(
            help="Tokens to sample from the dense model, for half of each batch.", callback=at_least("--sampled", 0)
        ),
    ] = 0,
    held_out: Annotated[float, typer.Option(help="Largest share of the documents to hold out from training.")] = 0.1,
    held_out_rows: Annotated[
        int,
        typer.Option(help="Rows for validation, and as many for testing; only the text they need is held out."),
    ] = 512,
    mixed_precision: Annotated[
        str, typer.Option(help="no, bf16 or fp16.", callback=one_of("mixed precision", ("no", "bf16", "fp16")))
    ] = "no",
    evaluate_every: Annotated[
        int, typer.Option(help="Steps between evaluations on held-out text.", callback=at_least("--evaluate-every", 1))
    ] = 50,
    seed: Annotated[int, typer.Option(help="Random seed for data order and noise.")] = 0,
    wandb: Annotated[str | None, typer.Option(help="Log to this wandb project.")] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="Maximum time between two checkpoints.")] = 10.0,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Save memory by computing layers twice, which is slower.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the checkpoint in --out.")] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="Save the best state of the checkpoint in --out without further training.")
    ] = False,
    json: Json = False,
) -> None:
    """Make the attention of a language model sparse at the same loss, and save the model to OUT/model.

    Example: `sparselens post-train --model stories260k --data stories.txt --out sparse`

    Half of the held-out documents steer the run; the printed results are measured on the other half, unseen in training
    and model selection. OUT/run.pdf plots the run. For several processes, use `accelerate launch -m sparselens
    post-train ...`.

    Ctrl-C writes a checkpoint and exits with code 130. Repeat the command with --resume to continue, or with --finish
    to save the best state so far; --finish accepts a new --margin or --target to select that state by.
    """
    options = {**locals()}  # only the command's options, before other locals exist
    if held_out_rows < 1:
        raise ValueError(f"--held-out-rows must be at least 1, not {held_out_rows}")
    rate = _rate(learning_rate)
    _refuse_contradiction(lora, train, merge)
    import torch

    from sparselens.cli.training_text import TrainingText
    from sparselens.gates.attention import recompute_activations
    from sparselens.gates.modes import open_gates
    from sparselens.gates.surgery import sparsify
    from sparselens.models.folder import load_transformers, save
    from sparselens.training.checkpoint import resumes
    from sparselens.training.evaluation import evaluate
    from sparselens.training.loop import PostTrainConfig
    from sparselens.training.loop import post_train as run
    from sparselens.training.processes import accelerator_for
    from sparselens.training.text import Source
    from sparselens.training.text.batches import refuse_no_rows
    from sparselens.training.trained import in_one_piece

    refuse_no_rows(seq_len, batch_size)
    accelerator = accelerator_for(mixed_precision)
    rows_each, accumulation = _batches_per_step(
        batch_tokens, accumulation, seq_len, batch_size, accelerator.num_processes
    )
    options |= {"learning_rate": rate, "accumulation": accumulation}
    config = _filled(PostTrainConfig, options)
    resumes(out / "checkpoint.pt", resume, finish)
    if resume and accelerator.is_main_process and not (out / "checkpoint.pt").exists():
        warn(f"{out} holds no checkpoint to resume from: starting at step 1")
    resume = resume or finish
    source = Source(data, column, split, stream)
    if not resume:
        next(source.pieces())  # fail on unreadable text before loading a model
    of = bases(base, model, dense)
    opened = partial(_open, model, gguf_file, lora, train, seed, of[model])
    network, tokenizer, saved_bias = opened()
    if saved_bias is not None and dense is None:
        raise ValueError(f"{model} is already sparse: pass the dense model it was made from as --dense")
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer, so --data cannot be tokenized")
    network.to(accelerator.device)
    reference = (
        network
        if dense is None
        else load_transformers(dense, dtype=torch.float32, **of[dense])[0].to(accelerator.device)
    )
    needed = _filled(TrainingText, options, source=source, rows_each=rows_each)
    with accelerator.main_process_first():  # it writes the tokens, the others read them
        reuse = resume or not accelerator.is_main_process
        text = needed.prepare(network, reference, tokenizer, out / "tokens", reuse)
    sparsify(network, saved_bias if gate_bias is None else gate_bias)
    if gradient_checkpointing:
        recompute_activations(network)
    with open_gates(reference):
        before = evaluate(reference, text.test, accelerator=accelerator)
    try:
        result = run(
            network,
            text.batches,
            config,
            held_out=text.validation,
            dense=reference,
            out=out,
            resume=resume,
            finish=finish,
            accelerator=accelerator,
        )
    except KeyboardInterrupt as stop:
        if accelerator.is_main_process:
            _explain(stop, out)
        raise typer.Exit(130) from stop
    after = evaluate(network, text.test, accelerator=accelerator)
    network = in_one_piece(network, lambda: opened()[0], accelerator.is_main_process)
    if accelerator.is_main_process:
        folder = save(
            network,
            out / "model",
            tokenizer=tokenizer,
            base_model=None if lora and not merge else dense or network.config._name_or_path,
            merge=merge,
            result=result,
            test=(before, after),
            command=shlex.join(["sparselens", *sys.argv[1:]]),
            data=text.record,
            figures=_draw(result, out),
        )
        print_result(before, after, folder, result, json, out)


def _refuse_contradiction(lora: int | None, train: str, merge: bool) -> None:
    if lora is not None and train != "all":
        raise ValueError(f"--lora trains only adapters: leave out either --lora or --train {train}")
    if merge and lora is None:
        raise ValueError("--merge is for adapters: add --lora, or leave out --merge")


def _open(
    model: str, gguf_file: str | None, lora: int | None, train: str, seed: int, of: dict[str, Any]
) -> tuple[Any, Any, float | None]:
    """The model with untrained parts frozen, its tokenizer, and its gate bias (None if it is dense)."""
    import torch

    from sparselens.models.adapters import add_lora
    from sparselens.models.folder import load_transformers
    from sparselens.training.trained import choose_trained

    network, tokenizer, gate_bias = load_transformers(model, gguf_file=gguf_file, dtype=torch.float32, **of)
    if lora is None:
        choose_trained(network, train)
    else:
        add_lora(network, lora, seed)
    return network, tokenizer, gate_bias


def _rate(text: str) -> Any:
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError as error:
        raise ValueError(f'--learning-rate {text!r}: want "auto" or a number such as 5e-4') from error


def _explain(stop: KeyboardInterrupt, out: Path) -> None:
    reason = str(stop).split(";")[0] or "stopped"
    how = "repeat the command with --resume to continue from the last checkpoint"
    warn(f"{reason}: {how if (out / 'checkpoint.pt').exists() else 'there is no checkpoint yet'}")


def _draw(result: "PostTrainResult", out: Path) -> list[Path]:
    from sparselens.analyses import training_figure

    return [training_figure(result).save(out / f"run.{form}") for form in ("png", "pdf")]


def _filled(kind: type[Settings], options: dict[str, Any], **others: Any) -> Settings:
    """Create a dataclass whose fields are the command's options of the same names."""
    names = {field.name for field in fields(cast(Any, kind))}
    return kind(**{name: value for name, value in options.items() if name in names}, **others)


def _batches_per_step(
    batch_tokens: int | None, accumulation: int, seq_len: int, batch_size: int, processes: int
) -> tuple[int, int]:
    """Rows per batch and batches per step."""
    from sparselens.training.text import batches_per_step

    if batch_tokens is None:
        return batch_size, accumulation
    if accumulation != 1:
        raise ValueError("pass either --batch-tokens or --accumulation, not both")
    return batches_per_step(batch_tokens, seq_len, batch_size, processes)
