"""Accepts old names and orders of arguments for one more release, with a DeprecationWarning."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def renamed_argument(
    old: str, new: str, translate: Callable[[Any], Any] = lambda value: value
) -> Callable[[Function], Function]:
    """Accept the keyword `old`, and pass its value, after `translate`, as `new`.

    >>> @renamed_argument("source", "ablation")
    ... def patch_heads(model, pairs, *, ablation="corrupted"): ...
    """

    def decorate(call: Function) -> Function:
        @wraps(call)
        def with_old_name(*args: Any, **options: Any) -> Any:
            if old in options:
                if new in options:
                    raise TypeError(f"{call.__name__}() got both {new}= and its old name {old}=")
                warn(f"{call.__name__}({old}=...) is now {call.__name__}({new}=...)", stacklevel=3)
                options[new] = translate(options.pop(old))
            return call(*args, **options)

        return with_old_name  # pyright: ignore[reportReturnType]

    return decorate


def pairs_first(call: Function) -> Function:
    """Accept the old order (model, scores, pairs, ...) as well as the new one (model, pairs, scores, ...)."""

    @wraps(call)
    def in_any_order(*args: Any, **options: Any) -> Any:
        from sparselens.prompts.tokenized import TokenizedPairs  # imports torch, which figures do not need

        if len(args) > 2 and isinstance(args[2], TokenizedPairs):
            warn(f"{call.__name__}(model, scores, pairs, ...) is now (model, pairs, scores, ...)", stacklevel=3)
            args = (args[0], args[2], args[1], *args[3:])
        return call(*args, **options)

    return in_any_order  # pyright: ignore[reportReturnType]


def warn(message: str, stacklevel: int) -> None:
    """Warn that an old form will be removed."""
    message = f"{message}; the old form will be removed in sparselens 0.2"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)
