"""Checks of types at a third of their cost: jaxtyping only where a signature names an array, beartype alone elsewhere.

jaxtyping binds the arguments of every call anew, to compare the shapes among them. Most functions have none, and they
are called most: these calls were half of what the suite computed. To be imported before `sparselens` is.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping

_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(given: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """Stands for `jaxtyping.jaxtyped`, which jaxtyping's import hook puts on every function and class."""
    if given is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if inspect.isfunction(given) and not _needs_jaxtyping(given):
        return _checked(given, typechecker(given))
    return _jaxtyped(given, typechecker=typechecker)


def _needs_jaxtyping(function: Callable[..., Any]) -> bool:
    """Arrays; and names in quotes, which for type checkers alone are importable: beartype stumbles over them."""
    shown = [repr(annotation) for annotation in function.__annotations__.values()]
    return any("jaxtyping." in one or "'" in one for one in shown)


def _checked(function: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    """Both in one, since a test may switch the checks off."""

    @functools.wraps(function)
    def either(*args: Any, **options: Any) -> Any:
        return (function if jaxtyping.config.jaxtyping_disable else checked)(*args, **options)

    return either


jaxtyping.jaxtyped = jaxtyped
