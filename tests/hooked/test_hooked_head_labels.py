"""Head labels of a HookedTransformer."""

from pathlib import Path

import pytest
import torch
from transformer_lens import ActivationCache, HookedTransformer, HookedTransformerConfig, head_detector
from transformer_lens.head_detector import HEAD_NAMES, detect_head

import sparselens as sl
from sparselens.analyses import label_heads
from tests.tiny_models import VOCABULARY, tiny_tokenizer


@pytest.mark.parametrize("gate_bias", [None, 0.0])
def test_scores_are_those_of_detect_head_where_every_query_counts(tmp_path: Path, gate_bias: float | None):
    sizes = {"n_layers": 2, "d_model": 8, "n_ctx": 16, "d_head": 4, "n_heads": 2, "d_vocab": VOCABULARY}
    config = HookedTransformerConfig(**sizes, act_fn="gelu", seed=0, device="cpu")
    model = HookedTransformer(config, tokenizer=tiny_tokenizer(tmp_path)).eval()
    if gate_bias is not None:
        sl.sparsify(model, gate_bias)
    prompt = "w1 w2 w3 w1 w2 w3"
    found = label_heads(model, [prompt])
    _, patterns = model.run_with_cache(prompt, remove_batch_dim=True)
    makers = (
        head_detector.get_previous_token_head_detection_pattern,
        head_detector.get_duplicate_token_head_detection_pattern,
        head_detector.get_induction_head_detection_pattern,
    )
    for scores, name, make in zip(found.scores, HEAD_NAMES, makers, strict=True):
        has_target = make(model.to_tokens(prompt).cpu()).any(-1)
        masked = {k: value * has_target[:, None] for k, value in patterns.items() if k.endswith("hook_pattern")}
        cache = ActivationCache(masked, model, has_batch_dim=False)
        torch.testing.assert_close(scores, detect_head(model, prompt, name, cache=cache).nan_to_num())
    assert label_heads(model, n=2).scores.shape == (3, 2, 2)
