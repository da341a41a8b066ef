"""Reads strict JSON from files and web pages that may contain anything."""

import json
from typing import Any


def strict_json(text: str | bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: it is not JSON, contains NaN or infinity, or is nested too deeply.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("this JSON is nested too deeply") from error


def json_object(content: str | bytes, name: object) -> dict[str, Any]:
    """Parse the content of a file called `name` as a JSON object.

    Raises:
        ValueError: it is not strict JSON, or not an object.
    """
    try:
        found = strict_json(content)
    except ValueError as error:
        raise ValueError(f"{name} is broken: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} is broken: it holds a {type(found).__name__}, not an object")
    return found
