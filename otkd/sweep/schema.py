"""The JSON schema of sweep files, made from the same models that check them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from otkd.core import plugins
from otkd.sweep.spec import SweepSpec


def sweep_schema() -> dict[str, Any]:
    """A schema that knows every term, solver, network and data set, with help texts and defaults."""
    schema = SweepSpec.model_json_schema()
    definitions = schema["$defs"]
    _enumerate(definitions["Data"]["properties"]["name"], plugins.names("data"))
    models = {"anyOf": [{"enum": list(plugins.cards("models"))}, {"type": "string", "pattern": "^timm/"}]}
    definitions["Network"]["properties"]["name"] |= models
    for who in ("teacher", "student"):
        field = definitions["Pair"]["properties"][who]
        definitions["Pair"]["properties"][who] = {"anyOf": [models, {"$ref": "#/$defs/Network"}]} | {
            key: value for key, value in field.items() if key == "description"
        }
    terms = {name: _term(name, definitions) for name in plugins.names("losses")}
    of_pair = dict.fromkeys(("teacher", "student"), models) | terms
    special = {"type": "object", "properties": of_pair, "additionalProperties": False, "required": list(of_pair)[:2]}
    schema["properties"]["methods"] |= {
        "properties": {
            "from": {"type": "string", "description": "A YAML file, relative to this one, whose methods are taken."},
            "only": {"type": "array", "items": {"type": "string"}, "description": "Which of them; all by default."},
        },
        "additionalProperties": {
            "type": "object",
            "properties": {**terms, "pairs": {"type": "array", "items": special}},
            "additionalProperties": False,
            "minProperties": 1,
        },
    }
    schema["properties"]["profiles"]["additionalProperties"] = {"type": "object"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "otkd sweep", **schema}


def sweep_schema_text() -> str:
    """The schema as it is committed."""
    return json.dumps(sweep_schema(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _enumerate(field: dict[str, Any], names: list[str]) -> None:
    field["enum"] = names


def _term(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """`kd: 0.9`, or the term's settings."""
    weight = {"type": "number", "minimum": 0}
    return {"anyOf": [weight, _axis(weight), _settings("losses", name, definitions)]}


def _settings(group: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A plug-in's settings, each of which may be an axis of a grid."""
    settings: dict[str, Any] = plugins.head(group, name).Config.model_json_schema()
    definitions.update(settings.pop("$defs", {}))
    settings["properties"] = {
        key: {"const": name} if key == "name" else {"anyOf": [field, _axis(field)]}
        for key, field in _nested(settings["properties"], definitions)
    }
    settings["title"] = name
    return settings


def _nested(properties: dict[str, Any], definitions: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Fields with those that choose a plug-in spelled out: its name, or one of the settings of the group."""
    for key, field in properties.items():
        group = field.get(plugins.SCHEMA_MARK)
        if group:
            options = [{"$ref": f"#/$defs/{_defined(group, name, definitions)}"} for name in plugins.names(group)]
            yield key, {"anyOf": [{"enum": plugins.names(group)}, *options]}
        else:
            yield key, field


def _defined(group: str, name: str, definitions: dict[str, Any]) -> str:
    """The name under which a plug-in's settings stand among the definitions, once for all fields that choose it."""
    key = f"{group}.{name}"
    if key not in definitions:
        definitions[key] = _settings(group, name, definitions)
    return key


def _axis(field: dict[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in field.items() if key not in ("default", "description", "title")}
    return {
        "type": "object",
        "properties": {"grid": {"type": "array", "items": values, "minItems": 1}},
        "required": ["grid"],
        "additionalProperties": False,
    }
