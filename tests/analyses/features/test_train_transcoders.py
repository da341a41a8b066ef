"""Training improves transcoders and is reproducible, and their quality is measured correctly."""

from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.engine.request import OpenModel
from sparselens.analyses.features.transcoder_quality import replacing
from sparselens.training.losses import next_token_loss
from tests.analyses.features.transcoders_for import random_transcoders, relu_model
from tests.tiny_models import tiny_bridge, tiny_tokens

MODEL = sl.load("stories260k")
TEXT = "Once upon a time there was a little girl named Lily. She saw a big dog in the park and wanted to play. "
SIZES: dict[str, Any] = {"features": 48, "top_k": 4, "batch_size": 4, "progress": False}


def rows() -> torch.Tensor:
    ids = MODEL.tokenizer(TEXT * 12, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: len(ids) // 16 * 16]).view(-1, 16)


@pytest.mark.parametrize("cross_layer", [True, False])
def test_training_explains_more(cross_layer: bool):
    """Training leaves much less error than a single step; L0 is k, if that many features are above zero."""
    text = rows()
    first, made = (
        analyses.train_transcoders(MODEL, text, steps=steps, cross_layer=cross_layer, **SIZES) for steps in (1, 40)
    )
    before, after = (analyses.measure_transcoders(MODEL, some, text, progress=False) for some in (first, made))
    assert made.cross_layer == cross_layer and made.top_k == 4 and made.n_layers == 5
    assert bool((after.missed < before.missed).all()) and float(after.missed.mean()) < 0.7 * float(before.missed.mean())
    assert bool((after.l0 <= 4).all()) and float(after.l0.mean()) > 3
    assert after.loss == before.loss < after.replaced_loss < before.replaced_loss
    assert repr(after).startswith("TranscoderQuality(L0 ") and len(after.to_frame()) == 5 and after.plot().data


def test_the_same_seed_gives_the_same_transcoders():
    text = rows()
    one, same, other = (
        analyses.train_transcoders(MODEL, text, steps=3, seed=seed, **SIZES).encoder for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_exact_transcoders_miss_nothing():
    """L0 and dead features are those of the model's own neurons; replacing its MLPs changes nothing."""
    model, transcoders = relu_model()
    tokens = tiny_tokens(batch=5)
    found = analyses.measure_transcoders(model, transcoders, tokens, progress=False)
    assert float(found.missed.max()) < 1e-8 and found.replaced_loss == pytest.approx(found.loss, rel=1e-5)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    active = [cache[f"blocks.{layer}.mlp.hook_in"] @ transcoders.encoder[layer].T for layer in range(2)]
    active = [values + transcoders.encoder_bias[layer] > 0 for layer, values in enumerate(active)]
    for layer, values in enumerate(active):
        assert float(found.l0[layer]) == pytest.approx(float(values.float().sum(-1).mean()), rel=1e-5)
        assert float(found.dead[layer]) == pytest.approx(
            1 - float(values.flatten(0, 1).any(0).float().mean()), rel=1e-5
        )


@pytest.mark.parametrize("family", ["gptj", "gemma2", "llama"])
def test_replaced_mlps_write_what_features_say(family: str):
    """If all features write zero, the model is left without MLPs; also with parallel blocks and norms after MLPs."""
    model, tokens = tiny_bridge(family), tiny_tokens()
    made = random_transcoders(model, top_k=3)
    silent = {"decoder": tuple(torch.zeros_like(values) for values in made.decoder)}
    silent["decoder_bias"] = torch.zeros_like(made.decoder_bias)
    nothing = [(f"blocks.{layer}.hook_mlp_out", lambda out, **_: torch.zeros_like(out)) for layer in range(2)]
    with torch.no_grad():
        wanted = model.run_with_hooks(tokens, fwd_hooks=nothing)
        quiet, loud = (
            analyses.measure_transcoders(model, some, tokens, progress=False).replaced_loss
            for some in (type(made)(**{**vars(made), **silent}), made)
        )
    assert quiet == pytest.approx(float(next_token_loss(wanted, tokens)), rel=1e-5) != pytest.approx(loud, rel=1e-3)
    assert len(replacing(OpenModel(model), made)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps = 0: want more than 0"),
        ({"top_k": 50}, "top_k = 50: want 1 to 48, the number of features"),
        ({"rate": -1.0}, r"rate = -1\.0: want more than 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        analyses.train_transcoders(MODEL, rows(), **{"steps": 2, **SIZES, **options})
