"""The layer-by-layer start: its error, how far its gradient reaches, and what it does to real models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparselens as sl
from sparselens.gates.modes import OPEN_BIAS
from sparselens.gates.statistics import record_gates
from sparselens.models.adapters import add_lora
from sparselens.models.folder import load_transformers
from sparselens.training.layerwise import layerwise_fit
from sparselens.training.losses import next_token_loss
from sparselens.training.teacher import Teacher
from sparselens.training.text import TokenBatches, read_documents, rows, tokenize
from sparselens.training.trained import attentions
from tests.tiny_models import bridge_of, tiny_model, tiny_tokens
from tests.tiny_runs import counting_rows, gated, run

KINDS = ["gpt2", "llama", "gemma2", "neox", "opt", "phi3", "olmo2"]


def fit_of(model: nn.Module, dense: nn.Module | None = None) -> Any:
    return layerwise_fit(model, Teacher(dense or model, 0.0, gated=True), next_token_loss)


def made(family: str, kind: str) -> nn.Module:
    network = tiny_model(family)
    if kind == "lora":
        add_lora(network, 2)
    return sl.sparsify(bridge_of(network) if kind == "bridge" else network, gate_bias=0.0)


@pytest.mark.parametrize("kind", ["transformers", "bridge", "lora"])
@pytest.mark.parametrize("family", KINDS)
def test_with_open_gates_there_is_no_error_and_with_closed_ones_there_is(family: str, kind: str):
    model = made(family, kind)
    fit = fit_of(model)
    with record_gates(model):
        closed = fit(tiny_tokens())[0].item()
        sl.sparsify(model, OPEN_BIAS)
        opened = fit(tiny_tokens())[0].item()
    assert closed > 1e-6
    assert opened < 1e-10


@pytest.mark.parametrize(("family", "layers"), [("gpt2", "n_layer"), ("llama", "num_hidden_layers")])
def test_the_error_is_the_change_of_the_stream_behind_the_attention(family: str, layers: str):
    dense = tiny_model(family, **{layers: 1})
    model = sl.sparsify(tiny_model(family, **{layers: 1}), gate_bias=0.0)
    (_, theirs), (stream, ours) = (written(network) for network in (dense, model))
    wanted = ((ours - theirs).pow(2).sum(-1) / (stream + theirs).pow(2).sum(-1)).mean().item()
    assert wanted > 1e-6
    assert fit_of(model, dense)(tiny_tokens())[0].item() == pytest.approx(wanted, rel=1e-5)


def written(network: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first block reads, and what its attention adds."""
    found: list[torch.Tensor] = []
    hook = next(iter(attentions(network).values())).register_forward_hook(lambda _, __, out: found.append(out[0]))
    stream = network(tiny_tokens(), output_hidden_states=True).hidden_states[0]
    hook.remove()
    return stream, found[0]


def test_the_gradient_reaches_attentions_alone():
    model = gated(family="llama")
    with record_gates(model):
        fit_of(model)(tiny_tokens())[0].backward()
    own = {id(p) for attention in attentions(model).values() for p in attention.parameters()}
    for parameter in model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in own)


def test_the_cache_of_the_dense_pass_is_not_written_to_again():
    model = gated(family="llama")
    fit = fit_of(model)
    assert fit(tiny_tokens())[0].item() == fit(tiny_tokens())[0].item()


def test_a_few_steps_close_many_gates_of_a_real_model_and_lower_its_loss(shared_data: Path):
    model, tokenizer, _ = load_transformers("stories260k")
    text = tokenize(read_documents(shared_data / "text/tinystories_sample_2M.txt")[:300], tokenizer)
    training, held_out = text[: -32 * 64], rows(text[-32 * 64 :], 64, 32)
    sl.sparsify(model, 0.0)
    config = sl.PostTrainConfig(
        steps=40,
        layerwise_steps=40,
        layerwise_multiplier=100.0,
        learning_rate=1e-3,
        control_steps=0,
        warmup=1,
        target=9.0,
    )
    result = sl.post_train(model, TokenBatches(training, 64, 16), config, held_out=held_out, progress=False)
    before, after = result.history[0], result.sparse
    assert after.share_of_visible_pairs < 0.7 * before["share_of_visible_pairs"]
    assert after.loss < before["loss"]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path):
    options = {"steps": 8, "layerwise_steps": 4, "evaluate_every": 2, "checkpoint_every": 3}
    whole = gated()
    run(whole, **options)
    with pytest.raises(ValueError, match="stop here"):
        run(gated(), out=tmp_path, batches=_until(4), **options)
    again = gated()
    result = run(again, out=tmp_path, resume=True, **options)
    assert "end of layer-by-layer training" in result.history[2]["event"]
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])


def _until(last: int) -> Any:
    def batch(index: int) -> torch.Tensor:
        if index > last:
            raise ValueError("stop here")
        return counting_rows(index)

    return batch


def test_more_layerwise_steps_than_steps_are_refused():
    with pytest.raises(ValueError, match="layerwise_steps must be between 0 and steps=5, not 6"):
        sl.PostTrainConfig(steps=5, layerwise_steps=6)
