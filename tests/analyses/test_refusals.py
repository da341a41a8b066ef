"""One thing where another is wanted: what would do is said before anything slow. The type checks of tests are off."""

from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.engine import request
from sparselens.tasks import TASKS
from tests.tiny_models import FAMILIES, tiny_bridge

PLAIN = FAMILIES["gpt2"]()
MODEL = tiny_bridge("gpt2")
IDS = torch.arange(8).reshape(2, 4)
PAIRS = sl.TokenizedPairs(IDS, IDS + 1, torch.tensor([1, 2]), torch.tensor([3, 4]))


def _empty(n_layers: int) -> sl.Circuit:
    return sl.Circuit(sl.Graph.of_shape(n_layers, 1), [])


def _broken() -> Any:
    model = tiny_bridge("gpt2")
    next(model.original_model.transformer.h[0].attn.parameters()).data[0] = torch.nan
    return model


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a task as pairs": (lambda: analyses.attribute_edges(MODEL, TASKS["ioi"]), r"not Task\('ioi': .*task\.tokenize"),
    "a string as pairs": (lambda: analyses.patch_heads(MODEL, "Hello"), r"want TokenizedPairs, not 'Hello'"),
    "a task for attention edges": (
        lambda: analyses.attribute_attention_edges(MODEL, TASKS["ioi"]),
        "want TokenizedPairs, not Task",
    ),
    "a transformers model": (
        lambda: analyses.attribute_edges(PLAIN, PAIRS),
        r"want a TransformerBridge or HookedTransformer, not a GPT2LMHeadModel: sl\.load",
    ),
    "a name as a model": (lambda: analyses.patch_heads("gpt2", PAIRS), "not gpt2: sl.load"),
    "a name for its attention": (lambda: analyses.attention_edges("gpt2", PAIRS), "not gpt2: sl.load"),
    "a name to compare": (lambda: analyses.compare("gpt2", MODEL, TASKS["ioi"]), "not gpt2: sl.load"),
    "a name to evaluate": (
        lambda: sl.evaluate(MODEL, "ioi"),
        r"want a Task, such as TASKS\['ioi'\], or TokenizedPairs, not 'ioi'",
    ),
    "pairs out of the vocabulary to compare": (
        lambda: analyses.compare(MODEL, MODEL, sl.TokenizedPairs(IDS, IDS + 90, PAIRS.answer, PAIRS.wrong_answer)),
        "token 90 of corrupted prompt 0",
    ),
    "answers out of the vocabulary to compare": (
        lambda: analyses.compare(MODEL, MODEL, sl.TokenizedPairs(IDS, IDS + 1, IDS[:, 0] + 90, IDS[:, 1])),
        "token 90 of answer 0",
    ),
    "a task to keep the top of": (
        lambda: analyses.keep_top(MODEL, TASKS["ioi"], []),
        "want TokenizedPairs, not Task",
    ),
    "a task to prune": (lambda: analyses.pruned_circuit(MODEL, TASKS["ioi"], None), "want TokenizedPairs, not Task"),
    "a task for a cone": (lambda: analyses.dependency_cone(MODEL, TASKS["ioi"]), "want TokenizedPairs, not Task"),
    "a task for a loss": (lambda: analyses.measure_loss(MODEL, TASKS["ioi"]), "want TokenizedPairs, not Task"),
    "a task for a lens": (lambda: analyses.logit_lens(MODEL, TASKS["ioi"]), "want TokenizedPairs, not Task"),
    "a string to label heads on": (lambda: analyses.label_heads(MODEL, "Hello"), "'Hello': want a list of strings"),
    "a transformers model to label": (lambda: analyses.label_heads(PLAIN), r"not a GPT2LMHeadModel: sl\.load"),
    "a transformers model's graph": (lambda: sl.Graph.of_model(PLAIN), r"not a GPT2LMHeadModel: sl\.load"),
    "pairs that name no position": (
        lambda: analyses.head_roles(MODEL, PAIRS),
        "name the positions END: want at least two, one before the other",
    ),
    "text as batches": (
        lambda: sl.post_train(PLAIN, "Once upon", held_out=[IDS]),
        r"a batch is 'Once upon': want token ids, .*model\.to_tokens\(text\).*--data",
    ),
    "texts as batches": (lambda: sl.post_train(PLAIN, [IDS], held_out=["Once"]), "a batch is 'Once': want token ids"),
    "scores as a circuit": (
        lambda: analyses.faithfulness(MODEL, torch.ones(2), PAIRS),
        r"want a Circuit, such as scores\.top\(20\)",
    ),
    "a string as tokens": (lambda: analyses.attention_edges(MODEL, "Hello"), r"not 'Hello': make them"),
    "one row of tokens": (lambda: analyses.attention_edges(MODEL, IDS[0]), r"Int\[batch pos\], not \[4\]"),
    "an id out of the vocabulary": (
        lambda: analyses.attention_edges(MODEL, IDS + 90),
        r"token 90 of prompt 0: this model has tokens 0 to 30",
    ),
    "pairs out of the vocabulary": (
        lambda: analyses.patch_heads(MODEL, sl.TokenizedPairs(IDS, IDS + 90, PAIRS.answer, PAIRS.wrong_answer)),
        "token 90 of corrupted prompt 0",
    ),
    "one group of prompts": (lambda: analyses.robustness(MODEL, {"all": PAIRS}), "there is 1: want two or more"),
    "pairs as groups": (
        lambda: analyses.robustness(MODEL, PAIRS),
        r"groups of pairs by name, such as .*groups\(\)",
    ),
    "no groups": (lambda: analyses.robustness(MODEL, {}), "there is none: want two or more"),
    "a group of one prompt": (
        lambda: analyses.robustness(MODEL, {"one": PAIRS, "other": PAIRS[:1]}),
        r"'other' has 1 different clean prompt, want at least 2: .*groups\(least=20\)",
    ),
    "no circuits to run": (
        lambda: analyses.robustness(MODEL, {"one": PAIRS}, circuits={}),
        "at least one group and",
    ),
    "circuits of two models": (
        lambda: analyses.robustness(MODEL, {"one": PAIRS}, circuits={str(n): _empty(n) for n in (1, 2)}),
        r"different graphs: '2' of ",
    ),
    "strings as pairs": (lambda: sl.TokenizedPairs("a", "b", "c", "d"), r"clean is 'a': .*sl\.tokenize_pairs"),
    "floats as ids": (lambda: sl.TokenizedPairs(IDS.float(), IDS, IDS[:, 0], IDS[:, 1]), "clean is tensor"),
    "a position as rows": (lambda: PAIRS["END"], r"no such rows: 'END' \(want indices"),
    "a mistyped method": (
        lambda: analyses.attribute_edges(MODEL, PAIRS, method="exakt"),
        r"'exakt', did you mean 'exact'\? \(want eap, eap-ig, .*, exact, auto\)",
    ),
    "a metric of logits alone": (
        lambda: analyses.patch_heads(MODEL, PAIRS, lambda logits: logits[:, -1, 0]),
        r"is not a metric .*want a function of \(logits, pairs\)",
    ),
    "an evaluation by such a metric": (
        lambda: sl.evaluate(MODEL, PAIRS, metric=lambda logits, _: logits[:, -1, 0] - logits[:, -1, 0].mean()),
        "results would depend on batch_size",
    ),
    "weights that are not numbers": (lambda: analyses.attention_edges(_broken(), PAIRS), "layer 0 is not finite"),
    "labels of such weights": (lambda: analyses.label_heads(_broken(), n=1), "patterns are not finite"),
    "a mistyped metric": (
        lambda: analyses.patch_heads(MODEL, PAIRS, "logit_diference"),
        "did you mean 'logit_difference'",
    ),
    "a model as a circuit's scores": (
        lambda: analyses.circuit_viewer(MODEL),
        r"want EdgeScores, as returned by analyses\.attribute_edges\(model, pairs\), not a TransformerBridge",
    ),
    "a name as attention edges": (
        lambda: analyses.token_view("gpt2", None, [["a"]]),
        r"want AttentionEdges, as returned by analyses\.attention_edges\(model, pairs\), not 'gpt2'",
    ),
    "a second model to draw": (
        lambda: analyses.pattern_figure(analyses.attention_edges(MODEL, IDS), MODEL, [["a"] * 4] * 2),
        "want AttentionEdges, .* not a TransformerBridge",
    ),
    "a model's head": (lambda: analyses.head_pattern(MODEL, [["a"]], 0, 0, 0), "want AttentionEdges, .* not a Trans"),
    "a string as a gate bias": (
        lambda: sl.sparsify(tiny_bridge("gpt2"), gate_bias="0"),
        "gate_bias must be a finite number, not '0'",
    ),
    "base alone": (
        lambda: analyses.patch_heads(MODEL, PAIRS, base="corrupted"),
        r"nothing would change \(want ablation='clean' with it\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_would_do_is_said(case: str, monkeypatch: pytest.MonkeyPatch):
    call, message = WRONG[case]
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(request, "run", lambda *_: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda logits, _: logits[:, -1, 0].numpy(), "the metric gave a ndarray for .* want a tensor"),
        (lambda logits, _: logits[:, -1, 0] - logits[:, -1, 0].mean(), "results would depend on batch_size"),
    ],
)
def test_metrics_that_are_none_are_refused_by_their_first_run(
    metric: Any, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        analyses.patch_heads(MODEL, PAIRS, metric, progress=False)
