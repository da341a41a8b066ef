"""Norms as formulas."""

import pytest
import torch

from sparselens.analyses.engine.norms import Norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("centred", [True, False])
def test_a_norm_folded_into_weights_is_the_norm_and_then_the_weights(centred: bool, dtype: torch.dtype) -> None:
    """A norm is read in single precision, whatever the model's precision is."""
    norm = Norm(torch.randn(8), torch.randn(8), 1e-5, centred)
    x, weight = torch.randn(3, 5, 8, dtype=dtype), torch.randn(3, 8, 4, dtype=dtype)
    torch.testing.assert_close(norm.into(x, weight), norm(x) @ weight.to(norm(x)))
