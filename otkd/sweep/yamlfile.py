"""YAML as sweep files want it: safe, no key twice, `1e-3` is a number; what is wrong is told with its line."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from otkd.core.errors import ConfigError, OtkdError, Problem


class _Loader(yaml.SafeLoader):
    """A safe loader with the two changes that the module names."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.MarkedYAMLError(problem="a key must be a plain word", problem_mark=key_node.start_mark)
        if key in seen:
            raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)  # `<<: *anchor`
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),  # YAML 1.1 wants a point in it, people do not
    list("-+.0123456789"),
)


def read(path: Path) -> dict[str, Any]:
    """The mapping in a file.

    Raises:
        OtkdError: there is no such file, or it cannot be read.
        ConfigError: it is not YAML, or no mapping; with line and column.
    """
    try:
        tree = parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise OtkdError(f"there is no file {path}; `otkd list sweeps` names those that ship with otkd.") from None
    except UnicodeDecodeError:
        raise OtkdError(f"{path} cannot be read: it is no text in UTF-8.") from None
    except OSError as error:
        raise OtkdError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(str(path), [Problem("", "a sweep is a mapping with name, data, pairs, train, methods.")])
    return tree


def parse(text: str, source: str) -> Any:
    """A YAML value.

    Raises:
        ConfigError: it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(source, [Problem(where, f"{error.problem or 'not YAML'}.")]) from None
    except yaml.YAMLError as error:
        raise ConfigError(source, [Problem("", f"not YAML: {' '.join(str(error).split())}.")]) from None
