"""Post-training: what comes back, what stays untouched, and what is refused."""

import itertools
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import sparselens as sl
from sparselens.analyses.engine.partial_runs import peak_bytes
from sparselens.gates.modes import open_gates
from sparselens.gates.noise import RowNoise
from sparselens.gates.statistics import GateStatistics, record_gates
from sparselens.gates.surgery import gate_settings
from sparselens.training.control import GAIN, RATES, TOLERANCE, Control, gain_of
from sparselens.training.evaluation import Evaluation, evaluate
from sparselens.training.losses import next_token_loss
from tests.tiny_models import checkpoint_activations, tiny_tokens
from tests.tiny_runs import HELD_OUT, assert_histories_close, counting_rows, gated, ragged_rows, run, trained

WAYS = [("transformers", "gpt2"), ("transformers", "llama"), ("bridge", "gpt2"), ("bridge", "llama")]
ways = pytest.mark.parametrize(("kind", "family"), WAYS)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(model: Any, expected: dict[str, Tensor], **tolerance: float) -> None:
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@ways
def test_best_state_of_the_history_comes_back(kind: str, family: str):
    model = gated(kind, family)
    with open_gates(model):
        dense = evaluate(model, HELD_OUT)
    before = weights(model)
    result = run(model, margin=0.5, multiplier_range=1e4)

    assert result.dense == dense
    assert result.target == pytest.approx(dense.loss + 0.5)
    assert dense.share_of_visible_pairs == 1
    assert evaluate(model, HELD_OUT) == result.sparse  # evaluated again: the same numbers
    met = [record for record in result.history if record["loss"] <= result.target]
    assert result.feasible and met
    assert result.sparse.share_of_visible_pairs == min(record["share_of_visible_pairs"] for record in met)
    assert [record["step"] for record in result.history] == [0, 4, 8, 12]
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("kind", "family"), [WAYS[1], WAYS[2]])
def test_unreachable_target_gives_the_lowest_loss(kind: str, family: str):
    model = gated(kind, family)
    result = run(model, target=0.001)
    assert not result.feasible
    assert result.sparse.loss == min(record["loss"] for record in result.history)
    assert evaluate(model, HELD_OUT) == result.sparse


def test_multiplier_follows_the_held_out_loss():
    """Not the noisy training loss; while the rate is high the target may be missed by the allowance."""
    options = {"steps": 8, "evaluate_every": 2, "decay": 1.0, "multiplier_range": math.exp(4), "violation_limit": 0.5}
    history = run(gated(), target=3.0, allowance=0.2, **options).history
    for before, after in itertools.pairwise(history):
        assert after["allowance"] == pytest.approx(0.2 * (1 - after["step"] / 8) - 0.005 * after["step"] / 8)
        violation = after["loss"] - 3.0 - after["allowance"]
        assert after["multiplier"] / before["multiplier"] == pytest.approx(
            math.exp(max(-1.0, min(1.0, violation / 0.5)))
        )


def test_a_broken_run_goes_back_to_its_best_state():
    model = trained()
    hasty = {"learning_rate": 1e-2, "decay": 0.01, "multiplier": 1e-3, "violation_limit": 1e-3}
    history = run(model, margin=0.3, evaluate_every=1, **hasty).history
    back = [i for i, record in enumerate(history) if "back to step" in record.get("event", "")]
    assert back
    for i in (i for i in back if i + 1 < len(history)):
        step = int(history[i]["event"].split("back to step ")[1].split(",")[0])
        kept = next(record for record in history if record["step"] == step)
        assert step and kept["feasible"] and history[i]["multiplier"] < history[i + 1]["multiplier"]


def test_a_run_that_begins_well_and_breaks_goes_back_to_its_start():
    model = trained()
    before = weights(model)
    result = run(model, learning_rate=0.3, margin=1.0, violation_limit=1e-3)
    assert result.history[0]["feasible"] and not result.history[1]["feasible"]
    assert "back to step 0" in result.history[1]["event"]
    assert result.step == 0 and result.feasible
    assert_same_weights(model, before, atol=0, rtol=0)


def test_dense_control_tells_a_rate_that_wrecks_the_model():
    model = trained()
    before = weights(model)
    with pytest.warns(
        UserWarning, match=r"damages the model even with every gate open: learning rate 1: .* after 2 steps"
    ):
        result = run(model, learning_rate=1.0, steps=40, control_steps=50)  # a tenth of the steps is the most
    assert [control.holds for control in result.controls] == [False]
    assert result.step == 0  # what came after was worse than the model as it was
    assert_same_weights(model, before, atol=0, rtol=0)


def test_what_fine_tuning_alone_gains_is_said():
    """A model that has not learnt the text: its own loss is no measure of what its gates cost."""
    result = run(gated(), learning_rate=1e-2, steps=40, control_steps=4)
    (control,) = result.controls
    gained = result.dense.loss - min(control.losses.values())
    assert gained > GAIN
    said = f"lower the held-out loss to {min(control.losses.values()):.4f}, {gained:.4f} below the dense model"
    assert said in result.notes[-1] and said in result.history[0]["event"]
    assert gain_of([Control(1e-3, {5: 2.0, 10: 1.96}, True)], 2.0) is None
    assert gain_of([Control(1e-2, {5: 1.0}, False)], 2.0) is None


def test_automatic_learning_rate_is_the_largest_that_holds():
    one, other = trained(), trained()
    chosen = run(one, learning_rate="auto", steps=40, control_steps=10)
    *wrecked, held = chosen.controls
    assert held.holds and not any(control.holds for control in wrecked)
    assert [control.learning_rate for control in chosen.controls] == list(RATES[: len(chosen.controls)])
    assert all(loss <= chosen.dense.loss + 3 * TOLERANCE for loss in held.losses.values())
    named = run(other, learning_rate=held.learning_rate, steps=40)  # the control has left no trace
    assert named.controls == []
    assert [record["loss"] for record in named.history] == [record["loss"] for record in chosen.history]
    assert_same_weights(other, weights(one), atol=0, rtol=0)


def test_no_learning_rate_holds_on_data_of_another_kind():
    def rises(logits: Tensor, batch: Tensor) -> Tensor:
        return next_token_loss(logits, batch) + next(calls)

    calls = itertools.count()
    with pytest.raises(ValueError, match=r"all learning rates raise the held-out loss.* Tried: learning rate 0.002: "):
        run(gated(), learning_rate="auto", loss=rises)


def test_temperature_is_of_the_run_alone():
    model = gated()
    seen: set[float] = set()

    def watched(logits: Tensor, batch: Tensor) -> Tensor:
        seen.add(gate_settings(model).temperature)
        return next_token_loss(logits, batch)

    run(model, loss=watched, noise_temperature=0.25)
    assert 0.25 in seen
    assert gate_settings(model).temperature == 1


def test_training_lowers_loss_and_closes_gates():
    violated, slack = gated(), gated()
    result = run(violated, target=2.0, steps=20)
    assert result.sparse.loss < result.dense.loss - 0.5
    result = run(slack, target=50.0, steps=20)
    assert result.sparse.share_of_visible_pairs < 0.8 * result.history[0]["share_of_visible_pairs"]


def test_both_ways_are_one_run():
    through_bridge, direct = gated("bridge", "llama"), gated("transformers", "llama")
    histories = [run(model, clip_norm=0.0).history for model in (through_bridge, direct)]
    assert_histories_close(*histories, rel=1e-4)


def test_two_half_batches_are_one_batch():
    whole, halves = gated(), gated()

    def half(index: int) -> Tensor:
        return counting_rows(index // 2).chunk(2)[index % 2]

    one = run(whole)
    two = run(halves, batches=half, accumulation=2)
    assert_histories_close(one.history, two.history, rel=1e-4)
    assert_same_weights(halves, weights(whole), atol=1e-5, rtol=1e-4)


# the edges are a mean over the parts of a step, so that padding changes their weights: all weight goes to the loss
RAGGED = [("labels", {"distillation": 0.5}), ("padding", {"distillation": 0.5, "multiplier": 1e4, "target": -5.0})]


@pytest.mark.parametrize(("hidden_by", "options"), RAGGED)
def test_two_ragged_half_batches_are_one_batch(hidden_by: str, options: dict[str, Any]):
    whole, halves = gated(), gated()
    held_out = [ragged_rows(100, hidden_by)]

    def half(index: int) -> dict[str, Tensor]:
        return {name: value.chunk(2)[index % 2] for name, value in ragged_rows(index // 2, hidden_by).items()}

    one = run(whole, batches=lambda i: ragged_rows(i, hidden_by), held_out=held_out, **options)
    split = [{name: value.chunk(2)[i] for name, value in held_out[0].items()} for i in range(2)]
    two = run(halves, batches=half, held_out=split, accumulation=2, **options)
    assert_histories_close(one.history, two.history, rel=1e-3)


@pytest.mark.parametrize(("kind", "family"), [WAYS[0], WAYS[3]])
def test_distillation_follows_the_dense_model(kind: str, family: str):
    model, alone = gated(kind, family), gated(kind, family)
    tokens = HELD_OUT[0]

    def divergence(other: Any) -> float:
        with torch.no_grad():
            logits = other(tokens)
        log_probs = torch.log_softmax(logits if isinstance(logits, Tensor) else logits.logits, -1)
        return float((dense.exp() * (dense - log_probs)).sum(-1).mean())

    with open_gates(model), torch.no_grad():
        logits = model(tokens)
        dense = torch.log_softmax(logits if isinstance(logits, Tensor) else logits.logits, -1)
    unreachable = {"target": -5.0, "multiplier": 1e3}  # all weight goes to the loss
    run(model, distillation=1.0, **unreachable)
    run(alone, distillation=0.0, **unreachable)
    assert divergence(model) < 0.5 * divergence(alone)


@pytest.mark.parametrize("kind", ["transformers", "bridge"])
def test_mixed_precision_leaves_no_trace(kind: str):
    model = gated(kind)
    result = run(model, mixed_precision="bf16")
    assert math.isfinite(result.sparse.loss)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "forward" not in model.__dict__
    exact = evaluate(model, HELD_OUT)
    assert exact.loss == pytest.approx(result.sparse.loss, rel=0.02)


def test_loss_of_the_caller_is_what_is_constrained():
    calls: list[float] = []

    def twice(logits: Tensor, batch: Tensor) -> Tensor:
        calls.append(1)
        return 2 * next_token_loss(logits, batch)

    model = gated()
    with open_gates(model):
        dense = evaluate(model, HELD_OUT)
    result = run(model, loss=twice)
    assert result.dense.loss == pytest.approx(2 * dense.loss)
    assert len(calls) > 12


def test_batches_may_carry_masks_and_labels():
    def padded(index: int) -> dict[str, Tensor]:
        tokens = counting_rows(index)
        mask = torch.ones_like(tokens)
        mask[:, 6:] = 0
        return {"input_ids": tokens, "attention_mask": mask, "labels": tokens}

    result = run(gated(), batches=padded, held_out=[padded(0)])
    assert result.dense.share_of_visible_pairs == 1  # padding is not visible
    assert result.dense.edges_per_query_per_head == pytest.approx(6 * 7 / 2 / 6)


def test_iterables_are_gone_through_again_and_again():
    listed, indexed = gated(), gated()
    three = [counting_rows(i) for i in range(3)]
    run(listed, batches=three)
    run(indexed, batches=lambda i: three[i % 3])
    assert_same_weights(listed, weights(indexed), atol=0, rtol=0)


def test_random_state_and_noise_of_the_caller_stay():
    model = gated(attn_pdrop=0.5)
    noise = gate_settings(model).noise
    before = torch.get_rng_state()
    run(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert gate_settings(model).noise is noise
    assert gate_settings(model).gate_bias == 2.0
    assert gate_settings(model).recorders == []


def test_same_seed_same_run_whatever_was_drawn_before():
    first, second, other = (gated(resid_pdrop=0.3) for _ in range(3))
    run(first)
    torch.rand(17)
    run(second)
    run(other, seed=1)
    assert_same_weights(second, weights(first), atol=0, rtol=0)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_infinite_training_loss_stops_before_the_weights_move(value: float):
    model = gated()
    calls = 0

    def breaks(logits: Tensor, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += model.training
        return next_token_loss(logits, batch) * (value if model.training and calls == 3 else 1.0)

    with pytest.raises(ValueError, match=r"the training loss is (inf|nan) at step 3"):
        run(model, loss=breaks)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert math.isfinite(evaluate(model, HELD_OUT).loss)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_infinite_gradient_stops_before_the_weights_move():
    model = gated()

    def steep(logits: Tensor, batch: Tensor) -> Tensor:
        loss = next_token_loss(logits, batch)
        return loss + (loss - loss.detach()).abs().sqrt()  # finite, but its slope at zero is not

    with pytest.raises(ValueError, match="the gradient is not finite at step 1"):
        run(model, loss=steep)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_infinite_held_out_loss_is_an_error():
    with pytest.raises(ValueError, match="target must be a finite number"):
        run(gated(), loss=lambda logits, batch: next_token_loss(logits, batch) + math.nan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": math.nan}, "target must be a finite number of nats per token, not nan"),
        ({"target": math.inf}, "target must be a finite number"),
        ({"margin": math.nan}, "margin must be a finite number"),
        ({"learning_rate": math.nan}, r'learning_rate must be "auto" or a finite number'),
        ({"noise_temperature": 0.0}, "noise_temperature must be a finite number above 0"),
        ({"multiplier_range": 0.5}, "multiplier_range must be a finite factor"),
        ({"allowance": -1.0}, "allowance must be a finite number of nats, 0 or more"),
        ({"control_steps": -1}, "control_steps must be 0 or more, not -1"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"distillation": 1.5}, "distillation must be between 0 and 1"),
        ({"batches": []}, "no training batches"),
        ({"batches": iter([tiny_tokens()])}, "no training batches"),
        ({"batches": [torch.zeros(0, 8, dtype=torch.long)]}, "a batch of 0 rows"),
        ({"held_out": []}, "no held-out batch"),
        ({"resume": True}, "resume=True needs the `out` folder"),
    ],
)
def test_senseless_settings_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        run(gated(), **options)


def test_dense_models_are_refused():
    with pytest.raises(ValueError, match="has no gates"):
        run(sl.densify(gated()))


def test_states_that_meet_the_target_come_first_by_sparsity():
    def state(loss: float, share: float) -> Evaluation:
        return Evaluation(loss, 0.0, share, 0.0, 0.0, share)

    ranked = [state(0.9, 0.1), state(1.0, 0.2), state(0.5, 0.3), state(1.1, 0.01), state(1.2, 0.0)]
    shuffled = [ranked[i] for i in (3, 1, 4, 0, 2)]
    assert sorted(shuffled, key=lambda s: s.rank(1.0)) == ranked


class Calls:
    """A recorder that notes which layers were counted, in order."""

    def __init__(self) -> None:
        self.layers: list[int] = []

    def add(self, layer: int, *_: Any) -> None:
        self.layers.append(layer)


def gradient_step(model: Any, tokens: Tensor) -> GateStatistics:
    with record_gates(model) as gates:
        task = next_token_loss(model(tokens, use_cache=False).logits, tokens)
        (task + gates.expected_share()).backward()
    return gates


def for_a_step(family: str, checkpointing: bool, **options: Any) -> Any:
    model = gated("transformers", family, **options).train()
    if checkpointing:
        checkpoint_activations(model, use_reentrant=False)
    gate_settings(model).noise = RowNoise(0, 0)
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt-oss"])
def test_gradient_checkpointing_changes_neither_gradients_nor_counts(family: str):
    found = []
    for checkpointing in (False, True):
        model, calls = for_a_step(family, checkpointing), Calls()
        gate_settings(model).recorders.append(calls)
        gates = gradient_step(model, HELD_OUT[0])
        counts = torch.stack([gates.open, gates.visible_pairs, gates.expected.detach()])
        found.append((counts, [p.grad.clone() for p in model.parameters()]))
        assert calls.layers == [0, 1]  # once each: recomputed layers are not counted again
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradient_checkpointing_saves_memory(family: str):
    deep = {"gpt2": {"n_layer": 8}, "llama": {"num_hidden_layers": 8}}[family]
    tokens = tiny_tokens(8, 32)
    peaks = [
        peak_bytes(partial(gradient_step, for_a_step(family, checkpointing, **deep), tokens))[1]
        for checkpointing in (False, True)
    ]
    assert peaks[1] < 0.3 * peaks[0]


def test_recomputed_bridges_are_counted_once():
    found = []
    for checkpointing in (False, True):
        model, calls = gated("bridge", "llama").train(), Calls()
        gate_settings(model).noise = RowNoise(0, 0)
        gate_settings(model).recorders.append(calls)
        with record_gates(model) as gates:
            logits = checkpoint(model, HELD_OUT[0], use_reentrant=False) if checkpointing else model(HELD_OUT[0])
            (next_token_loss(logits, HELD_OUT[0]) + gates.expected_share()).backward()
        assert calls.layers == [0, 1]
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[0], found[1])


def test_checkpointing_that_loses_the_gradient_of_the_gates_is_refused():
    model = gated()
    checkpoint_activations(model, use_reentrant=True)
    model.enable_input_require_grads()
    with pytest.raises(ValueError, match="use_reentrant=False"):
        run(model)


def test_learning_rate_rises_and_falls():
    config = sl.PostTrainConfig(steps=100, warmup=10, decay=0.2)
    shares = [config.rise_at(step) * config.fall_at(step) for step in (0, 4, 9, 50, 80, 90, 99)]
    assert shares == pytest.approx([0.1, 0.5, 1, 1, 1, 0.5, 0.05])
