"""Fixtures shared by the tests of gates."""

import pytest


@pytest.fixture
def plain_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention uncompiled, with backward passes allowed on a CPU."""
    from torch.nn.attention import flex_attention as home

    from sparselens.gates import flex

    monkeypatch.setattr(flex, "_compiled", lambda: home.flex_attention)
    monkeypatch.setattr(home, "_validate_device", lambda *_: None)
    monkeypatch.setattr(home, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
