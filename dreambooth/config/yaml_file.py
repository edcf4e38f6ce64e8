"""YAML in and out: what people write, and what strangers sent, with every error told by line and column."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dreambooth.errors import ConfigError
from dreambooth.files import read_text

MAX_FOREIGN_YAML = 2**16
"""Bytes of a repo's settings or card that are read; a complete config has about 2,000."""
MAX_BRACKETS = 32
"""Brackets in brackets of a repo's YAML; settings have two. The time to read them grows with the square."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises `ConfigError` with line and column where it is not one."""
    return _mapping(_read_text(path, str(path)), str(path))


def read_foreign_yaml(path: Path, source: str) -> dict[str, Any]:
    """`read_yaml` of a file that somebody else wrote and messages call `source`: refused where its size, depth, or
    aliases that may stand for gigabytes, could keep this machine busy."""
    return _foreign_mapping(_read_foreign_text(path, source), source)


def read_card_data(path: Path, source: str) -> dict[str, Any]:
    """What the front matter of somebody else's model card says, read as `read_foreign_yaml` reads; empty without."""
    front = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", _read_foreign_text(path, source), re.DOTALL)
    return _foreign_mapping(front[1], source) if front else {}


def _read_foreign_text(path: Path, source: str) -> str:
    if path.is_file() and (size := path.stat().st_size) > MAX_FOREIGN_YAML:
        raise ConfigError(f"{source}: has {size:,} bytes, too many for settings.")
    return _read_text(path, source)


def _foreign_mapping(text: str, source: str) -> dict[str, Any]:
    with _yaml_told(source):  # before anything is made of it
        depth = 0
        for token in yaml.scan(text):
            if isinstance(token, yaml.AliasToken):
                raise ConfigError(f"{source}: uses YAML aliases, which settings have no need of.")
            depth += isinstance(token, yaml.FlowSequenceStartToken | yaml.FlowMappingStartToken)
            depth -= isinstance(token, yaml.FlowSequenceEndToken | yaml.FlowMappingEndToken)
            if depth > MAX_BRACKETS:
                raise ConfigError(f"{source}: nests more than {MAX_BRACKETS} brackets, which settings never do.")
    return _mapping(text, source)


def _read_text(path: Path, source: str) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such file.", "Give the path of a YAML config; the README shows one.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: can't be read ({error}).") from None


def _mapping(text: str, source: str) -> dict[str, Any]:
    loaded = _parse_yaml(text, source)
    if not isinstance(loaded, dict):
        raise ConfigError(f"{source}: holds {type(loaded).__name__}, not settings.", "Write `key: value` lines.")
    return loaded


def to_yaml(settings: dict[str, Any]) -> str:
    """Plain settings as YAML that `read_yaml` takes back."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _parse_yaml(text: str, source: str) -> Any:
    with _yaml_told(source):
        return yaml.load(text, Loader=_Loader)


@contextmanager
def _yaml_told(source: str) -> Iterator[None]:
    try:
        yield
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise ConfigError(f"{source}{where}: not valid YAML ({problem}).") from None
    except (ValueError, RecursionError) as error:  # a date such as 2020-13-45, or thousands of brackets
        raise ConfigError(f"{source}: not valid YAML ({error}).") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 5e-6 is a number (it wants 5.0e-6), yes, no, on and off are words (`mixed_precision: no`; a switch
    takes them too), and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # YAML's own error says that it can't be a key
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text, such as the commit 7460e10, that `_Loader` or another reader would take for something else."""


for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    for _first in "-+.0123456789":
        _kind.yaml_implicit_resolvers.setdefault(_first, []).append(
            ("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"))
        )


for _first in "yYnNoO":
    _Loader.yaml_implicit_resolvers[_first] = [
        (tag, pattern) for tag, pattern in _Loader.yaml_implicit_resolvers[_first] if not tag.endswith(":bool")
    ]


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested settings, those of `above` where both have a value."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = merge(below[key], value) if nested else value
    return merged


def override(settings: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Nested settings, changed by `key.subkey=value` strings; raises `ConfigError` for one that is none."""
    for text in overrides:
        settings = merge(settings, _parse_override(text))
    return settings


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ConfigError(f"--set {text!r} is not KEY=VALUE.", "Write for example --set train.steps=400.")
    parsed: dict[str, Any] = _parse_yaml(value, f"--set {text!r}")
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed
