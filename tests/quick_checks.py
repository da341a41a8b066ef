"""Checks of types at a small part of their cost: what is called or defined a thousand times is checked now and then.

1. In every test the 1st, 2nd, 4th, 8th ... call of a function is checked: types that differ do so early, and loops
   repeat them.
2. Functions inside of functions, hooks above all, are made anew at every call of the outer one, and their checks with
   them: those are made by the same rule.
3. Checks are made when first needed, and by jaxtyping only where a signature names an array, by beartype alone
   elsewhere: jaxtyping binds the arguments of every call anew, to compare the shapes among them.

To be imported before `sparselens` is.
"""

import dataclasses
import functools
import inspect
import re
from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any

import jaxtyping

_jaxtyped = jaxtyping.jaxtyped
_called = Counter[CodeType]()  # in this test
_defined = Counter[CodeType]()


def begin_test() -> None:
    """Everything is checked again."""
    _called.clear()
    _defined.clear()


def jaxtyped(given: Any = None, *, typechecker: Callable[[Any], Any] | None = None) -> Any:
    """Stands for `jaxtyping.jaxtyped`, which jaxtyping's import hook puts on every function and class."""
    if typechecker is None:  # a context, not a decorator
        return _jaxtyped(given)
    if given is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if inspect.isfunction(given):
        inner = "<locals>" in given.__qualname__
        return given if inner and not _due(_defined, given) else _checked(given, typechecker)
    if dataclasses.is_dataclass(given) and "__init__" in vars(given) and inspect.isclass(given):
        given.__init__ = _checked(given.__init__, typechecker)
    return given


def _due(seen: Counter[CodeType], function: Callable[..., Any]) -> bool:
    code = function.__code__
    seen[code] = number = seen.get(code, 0) + 1
    return not number & (number - 1)  # a power of two


def _checked(function: Callable[..., Any], typechecker: Callable[[Any], Any]) -> Callable[..., Any]:
    """The function, checked where a check is due; a test may switch the checks off."""
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def either(*args: Any, **options: Any) -> Any:
        nonlocal checked
        if not _due(_called, function) or jaxtyping.config.jaxtyping_disable:
            return function(*args, **options)
        made = checked
        if made is None:
            shaped = _needs_jaxtyping(function)
            made = checked = _jaxtyped(function, typechecker=typechecker) if shaped else typechecker(function)
        return made(*args, **options)

    return either


def _needs_jaxtyping(function: Callable[..., Any]) -> bool:
    """Arrays; and names in quotes, which for type checkers alone are importable: beartype stumbles over them."""
    shown = [re.sub(r"<class '[^']*'>", "", repr(annotation)) for annotation in function.__annotations__.values()]
    return any("jaxtyping." in one or "'" in one for one in shown)


jaxtyping.jaxtyped = jaxtyped
