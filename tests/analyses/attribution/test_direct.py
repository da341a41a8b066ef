"""Direct logit attribution: hand-computed, summing to the logit difference, and equal to TransformerLens' numbers."""

from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens.analyses import direct_logit_attribution
from sparselens.prompts.metrics import logit_difference
from sparselens.tasks import TASKS
from tests.analyses.hand_model import hand_model, hand_pairs
from tests.analyses.small_models import tiny_pairs
from tests.tiny_models import FAMILIES, KINDS_OF_BLOCKS, tiny_bridge

QUIET: dict[str, Any] = {"progress": False}
READABLE = sorted(set(FAMILIES) - {"bert"})


def test_by_hand():
    """At the answer: (0, 2); heads of layer 0 write (2, 0), (0, 2), its MLP (4, 2); then (0, 0), (5, 0) and (11, 0)."""
    found = direct_logit_attribution(hand_model(), hand_pairs(), **QUIET)
    named = dict(zip(found.sources, found.mean.tolist(), strict=True))
    layers = {"a0.h0": 2, "a0.h1": -2, "m0": 2} | {"a1.h0": 0, "a1.h1": 5, "m1": 11}
    assert named == {"input": -2, **layers, "biases": 0}
    assert found.clean.tolist() == [16]


@pytest.mark.parametrize(
    ("family", "gate_bias"),
    [*((family, None) for family in READABLE), *((family, -0.1) for family in KINDS_OF_BLOCKS)],
)
def test_effects_are_all_of_the_logit_difference(family: str, gate_bias: float | None):
    model, pairs = tiny_bridge(family), tiny_pairs()
    if gate_bias is not None:
        sl.sparsify(model, gate_bias=gate_bias)
    found = direct_logit_attribution(model, pairs, **QUIET)
    torch.testing.assert_close(found.per_prompt.sum(-1), found.clean, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        logits = model(pairs.clean)
    cap = 30.0 if family == "gemma2" else None  # of a model with a cap: before it
    logits = logits if cap is None else cap * (logits / cap).atanh()
    torch.testing.assert_close(found.clean, logit_difference(logits, pairs), atol=1e-4, rtol=1e-4)
    assert (found.per_prompt.abs() > 1e-4).sum() > 10


@pytest.mark.parametrize("name", ["stories260k", "stories260k-sparse"])
def test_equal_to_transformer_lens(name: str):
    """TransformerLens wants the norm's gain folded into the unembedding; ours uses the model as it is."""
    model = sl.load(name)
    pairs = TASKS["gendered_pronoun"].tokenize(model.tokenizer, 3)
    (_, pairs) = next(pairs.batches(3))
    found = direct_logit_attribution(model, pairs, **QUIET)
    model.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)
    _, cache = model.run_with_cache(pairs.clean)
    at = {"pos_slice": -1}
    heads, labels = cache.stack_head_results(return_labels=True, **at)
    theirs = cache.logit_attrs(heads, pairs.answer, incorrect_tokens=pairs.wrong_answer, **at)
    ours = found.per_prompt[:, [found.sources.index(f"a{label[1]}.h{label[3]}") for label in labels]].T
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-4)
    parts, labels = cache.decompose_resid(mode="mlp", return_labels=True, **at)
    theirs = cache.logit_attrs(parts, pairs.answer, incorrect_tokens=pairs.wrong_answer, **at)
    for label, values in zip(labels, theirs, strict=True):
        if label.endswith("mlp_out"):
            ours = found.per_prompt[:, found.sources.index(f"m{label[0]}")]
            torch.testing.assert_close(ours, values.float(), atol=1e-5, rtol=1e-4)


def test_several_answers_and_lengths():
    model, pairs = tiny_bridge("llama"), tiny_pairs()
    mask = torch.ones_like(pairs.clean)
    mask[0, :3] = 0
    answers = torch.tensor([[1, 2], [3, -1], [4, 5]])
    several = sl.TokenizedPairs(pairs.clean, pairs.corrupted, answers, pairs.wrong_answer, attention_mask=mask)
    found = direct_logit_attribution(model, several, batch_size=2, **QUIET)
    torch.testing.assert_close(found.per_prompt.sum(-1), found.clean, atol=1e-5, rtol=1e-5)
    short = sl.TokenizedPairs(pairs.clean[:1, 3:], pairs.corrupted[:1, 3:], answers[:1], pairs.wrong_answer[:1])
    torch.testing.assert_close(found.per_prompt[:1], direct_logit_attribution(model, short, **QUIET).per_prompt)


def test_logits_that_are_changed_later_are_refused():
    model = tiny_bridge("gpt2")
    model.unembed.register_forward_hook(lambda _module, _args, logits: 2 * logits)
    with pytest.raises(ValueError, match="would not add up in this TransformerBridge: its logits are not"):
        direct_logit_attribution(model, tiny_pairs(), **QUIET)
