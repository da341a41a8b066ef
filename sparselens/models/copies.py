"""Deep copies of models, also of models that have run."""

import copy
from typing import TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def copied(model: Model) -> Model:
    """A deep copy; activations that modules kept from their last run are shared, without their graph.

    TransformerLens' modules keep their last attention pattern, and torch cannot copy a tensor that has a graph.
    """
    kept = (value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return copy.deepcopy(model, {id(value): value.detach() for value in kept if not value.is_leaf})
