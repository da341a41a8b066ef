"""Open the models of a command, some of which may be adapters that need a base model."""

import warnings
from typing import Any

from sparselens.cli.table import warn


def bases(base: str | None, *names: str | None) -> dict[str | None, dict[str, Any]]:
    """Extra arguments of `load` for each model: `--base` for adapters, nothing for other models.

    Raises:
        ValueError: a base is given, but none of the models is an adapter.
    """
    if base is None:
        return {name: {} for name in names}
    from sparselens.models.places import holds_adapters

    found = {name: {"base": base} if name is not None and holds_adapters(name) else {} for name in names}
    if not any(found.values()):
        models = " or ".join(name for name in names if name is not None)
        raise ValueError(
            f"--base {base} is only for adapters, but {models} has no adapter_config.json: leave out --base"
        )
    return found


def load_beside(dense: str, name: str, given: dict[str, Any]) -> Any:
    """Open a model that was made from `dense`. Adapters are attached to `dense` if they were trained on it.

    Args:
        given: the model's entry in `bases`

    Raises:
        ValueError: as `load`; or neither the dense model nor the base named in the adapters can be used.
    """
    from sparselens.models.adapters import OtherBaseWarning
    from sparselens.models.folder import load, load_record
    from sparselens.models.places import holds_adapters

    # Without a sample of the base's weights, only its name identifies it.
    if given or not holds_adapters(name) or load_record(name).get("base_sample") is None:
        return load(name, **given)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", OtherBaseWarning)
            model = load(name, base=dense)
    except (OtherBaseWarning, ValueError) as other:
        try:
            return load(name)
        except ValueError as error:
            raise ValueError(f"{error}. {dense} is not its base either: {other}") from error
    warn(f"{name}: attaching its adapters to {dense}, which has the weights they were trained on")
    return model
