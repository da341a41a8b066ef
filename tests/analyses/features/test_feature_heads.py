"""How few heads carry the influence of features, over prompts, in a dense and a sparse model."""

from typing import Any

import pytest
import torch

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.engine.request import OpenModel
from sparselens.tasks import TASKS
from tests.analyses.features.transcoders_for import random_transcoders
from tests.tiny_models import tiny_bridge, tiny_tokens

QUIET: dict[str, Any] = {"progress": False}


def test_weights_are_those_of_each_target():
    """As `attribute_feature` for each feature active at END and the logits, all with the same weight in shares."""
    model, tokens = tiny_bridge("llama"), tiny_tokens(batch=2)
    transcoders = random_transcoders(model, top_k=3)
    found = analyses.feature_heads(model, transcoders, tokens, **QUIET)
    assert len(found) == 2 and found.heads[:2] == ("a0.h0", "a0.h1") and len(found.heads) == 8
    for prompt, row in enumerate(tokens):
        names = found.targets[prompt]
        assert names[-1] == "logits" and {name.split("@")[-1] for name in names[:-1]} == {"8"} and len(names) == 7
        for name, weights in zip(names, found.influence[prompt], strict=True):
            alone = analyses.attribute_feature(model, transcoders, row, name.split("@")[0])
            torch.testing.assert_close(weights, alone.by_head, rtol=1e-4, atol=1e-6)
    reached = [weights[weights.sum(-1) > 0] for weights in found.influence]
    means = torch.stack([(some / some.sum(-1, keepdim=True)).mean(0) for some in reached])
    torch.testing.assert_close(found.shares, means)
    assert found.needed(1.0).tolist() == [int((row > 0).sum()) for row in means]
    assert bool((found.needed_per_target(0.8) <= found.needed(1.0)).all()) and 0 < float(found.errors.min()) < 1
    assert repr(found).startswith("FeatureHeads(2 prompts: ") and " heads carry 80% of the influence, " in repr(found)
    assert len(found.to_frame()) == 16 and found.plot().data[0].y[-1] == pytest.approx(1)


def test_prompts_in_any_form():
    """Texts, rows and pairs give the same; pairs are run up to END, without padding."""
    model = sl.load("stories260k")
    transcoders = random_transcoders(model, n_features=8, top_k=2)
    pairs = TASKS["gendered_pronoun"].tokenize(model.tokenizer, 2)
    of_pairs = analyses.feature_heads(model, transcoders, pairs, **QUIET)
    for number in range(2):
        mask = pairs.attention_mask
        ids = pairs.clean[number] if mask is None else pairs.clean[number][mask[number].bool()]
        same = analyses.feature_heads(model, transcoders, ids[None], **QUIET)
        torch.testing.assert_close(same.shares[0], of_pairs.shares[number])
    text = "Lily saw a big dog"
    one, again = (analyses.feature_heads(model, transcoders, some, **QUIET) for some in ([text], [text, text]))
    torch.testing.assert_close(one.shares[0], again.shares[1])
    with pytest.raises(ValueError, match="no prompt"):
        analyses.feature_heads(model, transcoders, [], **QUIET)


def test_only_heads_with_open_gates_carry_anything():
    """In the sparse model, at most the heads with an open gate in the prompt; in the dense one, all that could."""
    dense, sparse = sl.load("stories260k"), sl.load("stories260k-sparse")
    tokens = TASKS["gendered_pronoun"].tokenize(dense.tokenizer, 2).clean[:, :12]
    found = [
        analyses.feature_heads(model, random_transcoders(model, n_features=16, top_k=4), tokens, **QUIET)
        for model in (dense, sparse)
    ]
    assert found[0].needed(1.0).tolist() == [32] * 2  # all but those of layer 0, since no feature comes before it
    opened = OpenModel(sparse)
    names = [layer.at("attn.hook_pattern") for layer in opened.reading.layers]
    with torch.no_grad():
        _, cache = sparse.run_with_cache(tokens, names_filter=names)
    carrying = torch.cat([cache[name].flatten(2).any(-1) for name in names], 1)  # batch head
    for number in range(2):
        assert not found[1].shares[number][~carrying[number]].any()
        assert 0 < int(found[1].needed(0.8)[number]) <= int(carrying[number].sum()) < 40
    assert found[1].interval().mean < found[0].interval().mean
