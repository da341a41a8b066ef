"""Fingerprints of models: different for whatever changes a forward pass, the same otherwise."""

from typing import Any

import sparselens as sl
from sparselens.analyses.engine.fingerprints import of_model
from tests.tiny_models import bridge_of, tiny_bridge, tiny_model


def test_the_same_weights_with_another_activation_are_another_model():
    names = {of_model(tiny_bridge("gpt2", activation_function=name)) for name in ("relu", "gelu", "silu")}
    assert len(names) == 3


def test_every_layers_own_settings_count():
    def named(*kinds: str) -> str:
        model = tiny_bridge("gpt2")
        model.cfg.attn_types = list(kinds)
        return of_model(model)

    assert named("global", "local") != named("local", "global")


def test_where_a_model_comes_from_does_not_count():
    def named(**changes: Any) -> str:
        model = tiny_model("gpt2")
        vars(model.config).update(changes)
        return of_model(bridge_of(model))

    assert named(_name_or_path="here") == named(_name_or_path="there") == named(transformers_version="1")


def test_gates_and_weights_count():
    dense, other = tiny_bridge("gpt2"), tiny_bridge("gpt2", seed=1)
    assert len({of_model(dense), of_model(other), of_model(sl.sparsify(tiny_bridge("gpt2"), 0.0))}) == 3
    assert of_model(dense) == of_model(tiny_bridge("gpt2"))
