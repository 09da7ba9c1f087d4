"""The JSON schema of configs, by which editors complete and check them: `python -m rayfed.launch.config_schema` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayfed import methods
from rayfed.config.schema import Claim, Config
from rayfed.config.system import System
from rayfed.launch.explain import OF_STUDIES

FILE = Path(__file__).parents[1] / "config" / "schema.json"
LINE = "# yaml-language-server: $schema="  # by which an editor finds the schema of a YAML file


def schema() -> dict[str, Any]:
    """Return the schema of a config's file, with the settings of every ready method, and what makes it a study or a system.

    Settings of data sets, models and other parts chosen by name or kind are any: `rayfed validate` judges them.
    """
    made = Config.model_json_schema()
    properties, parts = made["properties"], made["$defs"]
    for name, cls in (("claim", Claim), ("system", System)):
        own = cls.model_json_schema()
        parts.update(own.pop("$defs", {}))
        parts[cls.__name__] = own
        properties[name] = {"$ref": f"#/$defs/{cls.__name__}"}
    claim = properties["claim"]
    properties["claim"] = {"anyOf": [claim, {"type": "array", "items": claim}], "description": OF_STUDIES["claim"][1]}
    seed = {"type": "integer", "minimum": 0}
    properties["seeds"] = {"type": "array", "items": seed, "description": OF_STUDIES["seeds"][1]}
    arm = {"type": ["object", "null"]}
    properties["arms"] = {"type": "object", "additionalProperties": arm, "description": OF_STUDIES["arms"][1]}
    properties["method"] = {"anyOf": _methods(parts), "description": properties["method"]["description"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "rayfed config",
        "required": ["task"],
    }


def _methods(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what `method` can be: a name, a ready method with its settings, or one of a user's own with any; adds to `parts`."""
    own = {"type": "object", "properties": {"name": {"type": "string", "pattern": r"\.py:"}}, "required": ["name"]}
    made: list[dict[str, Any]] = [{"enum": sorted(methods.ready())}, {"type": "string", "pattern": r"\.py:"}, own]
    for name in sorted(methods.ready()):
        settings = methods.get(name).Settings
        about = settings.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        parts.update({f"{name}.{inner}": of for inner, of in about.pop("$defs", {}).items()})
        properties = {"name": {"const": name}, **about.get("properties", {})}
        parts[f"method {name}"] = {
            "type": "object", "properties": properties, "required": ["name", *about.get("required", [])],
            "additionalProperties": False,
        }  # fmt: skip
        made.append({"$ref": f"#/$defs/method {name}"})
    return made


def text() -> str:
    """Return the schema as the file holds it."""
    return json.dumps(schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def with_schema(config: str) -> str:
    """Return a ready config's text with the schema's place on this machine, for a copy that lies elsewhere."""
    return config.replace(f"{LINE}../schema.json", f"{LINE}{FILE.as_uri()}", 1)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
