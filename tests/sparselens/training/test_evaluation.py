"""What an evaluation waits for."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from sparselens.gates.surgery import sparsify
from sparselens.training.evaluation import evaluate
from sparselens.training.losses import next_token_loss
from tests.tiny_models import tiny_model, tiny_tokens


class _Calls(TorchDispatchMode):
    """How often each operation was called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_a_batch_makes_nobody_wait_for_its_results() -> None:
    """Each number that Python reads from a tensor would wait for a GPU: the count of tokens, before they go there."""
    model = sparsify(tiny_model("llama"), 0.3)
    batches = [tiny_tokens(seed=i) for i in range(3)]
    with _Calls() as calls:
        found = evaluate(model, batches, next_token_loss)
    assert calls.seen["aten._local_scalar_dense.default"] <= len(batches) + 1  # and once at the end
    each = [evaluate(model, [batch], next_token_loss) for batch in batches]
    assert abs(found.loss - sum(e.loss for e in each) / 3) < 1e-6
    assert abs(found.open_edges - sum(e.open_edges for e in each) / 3) < 1e-6
