"""The tests' own search for hook points finds what TransformerLens' does."""

from typing import Any

import pytest

from tests.analyses.small_models import native_model
from tests.quick_hooks import scan_existing_hooks, searched
from tests.tiny_models import tiny_bridge


def found(bridge: Any, search: Any) -> list[tuple[str, int, str]]:
    """Where every hook point is, and what it is called, after the two searches of a new bridge."""
    for hook in bridge._hook_registry.values():
        hook.name = None
    bridge._hook_registry.clear()
    for _ in range(2):
        search(bridge, bridge)
    return [(name, id(hook), hook.name) for name, hook in bridge._hook_registry.items()]


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma3", "bloom", "gpt-oss", "bert", None])
def test_it_finds_the_same_hook_points(family: str | None):
    bridge = native_model() if family is None else tiny_bridge(family)
    ours = found(bridge, scan_existing_hooks)
    assert len(ours) > 50 and ours == found(bridge, searched)
