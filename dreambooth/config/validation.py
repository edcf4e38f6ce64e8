"""Strict settings, and what is wrong with some that somebody wrote, in words."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from dreambooth.errors import ConfigError

_Model = TypeVar("_Model", bound=BaseModel)
_MOST_TOLD = 10  # wrong settings of one file


class Settings(BaseModel):
    """A strict model: no unknown keys, no change once made, finite numbers, defaults checked as well."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def validated(kind: type[_Model], settings: dict[str, Any], source: str) -> _Model:
    """`settings` as a strict model; raises `ConfigError` with every wrong key, its value and what is allowed."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        wrong = [_describe(e, kind) for e in error.errors()]
        more = f"; and {len(wrong) - _MOST_TOLD} more" if len(wrong) > _MOST_TOLD else ""  # it may be no config at all
        raise ConfigError(f"{source}: {'; '.join(wrong[:_MOST_TOLD])}{more}") from None


def _describe(error: ErrorDetails, model: type[BaseModel]) -> str:
    """One pydantic finding as: key, what is wrong, the value."""
    kinds = ("int", "bool", "literal['auto']")  # pydantic names the members of a union; the settings' keys are others
    key = ".".join(str(part) for part in error["loc"] if part not in kinds)
    if error["type"] == "extra_forbidden":
        known = ", ".join(_known_keys(error["loc"][:-1], model))
        return f"unknown key {key!r}; known here: {known}"
    if error["type"] == "missing":
        return f"{key!r} is missing; set it"
    message: str = error["msg"].removeprefix("Value error, ")
    if not key:
        return message
    given = error["input"]
    return f"{key} = {given!r}: {message}" if not isinstance(given, dict) else f"{key}: {message}"


def _known_keys(path: tuple[Any, ...], model: type[BaseModel]) -> list[str]:
    for part in path:
        model = cast(type[BaseModel], model.model_fields[part].annotation)  # only sections have keys in them
    return list(model.model_fields)
