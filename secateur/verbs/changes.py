"""Changes of settings as a user types them: "name=value", checked against the settings' own types."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from secateur.core.errors import BudgetError

Settings = TypeVar("Settings")


def changed(settings: Settings, texts: Iterable[str], **given: Any) -> Settings:
    """Settings with other values: first each "name=value", then those that are given by name and are not None.

    Raises:
        BudgetError: as `changes`.
    """
    named = {name: value for name, value in given.items() if value is not None}
    return replace(settings, **changes(type(settings), texts) | named)  # type: ignore[type-var]


def changes(settings: type, texts: Iterable[str]) -> dict[str, Any]:
    """Field → value of each "name=value"; values are written as in JSON, words without quotes, lists
    between commas.

    Raises:
        BudgetError: a field that the settings do not have, or a value that it cannot have.
    """
    kinds = get_type_hints(settings)
    return dict(_parsed(kinds, text) for text in texts)


def _parsed(kinds: dict[str, Any], text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if name not in kinds:
        raise BudgetError(f'no setting "{name}"', f"the settings are: {', '.join(kinds)}")
    try:
        found = json.loads(value)
    except ValueError:
        found = value
    if isinstance(found, str) and get_origin(kinds[name]) is tuple:
        found = [part.strip() for part in found.split(",")]
    try:
        return name, TypeAdapter(kinds[name]).validate_python(found)
    except ValidationError as error:
        raise BudgetError(f'setting {name}: "{value}" does not fit', error.errors()[0]["msg"]) from error
