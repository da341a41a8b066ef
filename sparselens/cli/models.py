"""The base models of a command's models, some of which may be adapters."""

import warnings
from typing import Any

from sparselens.cli.table import warn


def bases(base: str | None, *names: str | None) -> dict[str | None, dict[str, Any]]:
    """What to pass to `load` besides the name, for every model: `--base` for those that are adapters.

    Raises:
        ValueError: a base is given, and none of the models is an adapter.
    """
    if base is None:
        return {name: {} for name in names}
    from sparselens.models.places import holds_adapters

    found = {name: {"base": base} if name is not None and holds_adapters(name) else {} for name in names}
    if not any(found.values()):
        models = " or ".join(name for name in names if name is not None)
        raise ValueError(
            f"--base {base} is for adapters, and {models} holds none (no adapter_config.json): leave it out"
        )
    return found


def load_beside(dense: str, name: str, given: dict[str, Any]) -> Any:
    """Open a model that was made from `dense`. Adapters are put on `dense`, if it is the base they were trained on.

    Args:
        given: what `bases` says of the model

    Raises:
        ValueError: as `load`; or neither the dense model nor the base that the adapters name will do.
    """
    from sparselens.models.adapters import OtherBaseWarning
    from sparselens.models.folder import load, load_record
    from sparselens.models.places import holds_adapters

    # Without a sample of the weights that they were trained on, only a name identifies the base.
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
            raise ValueError(f"{error}. Nor is {dense} its base: {other}") from error
    warn(f"{name}: its adapters are put on {dense}, which has the weights that they were trained on")
    return model
