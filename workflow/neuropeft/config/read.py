"""Read a configuration and check it before anything runs; each mistake is a sentence with its key and a fix.

`json_schema` is what editors use for completion; a test keeps the exported file in step.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from neuropeft.config.cohorts import Cohort
from neuropeft.config.pretraining import ImportedWeights
from neuropeft.config.root import Config
from neuropeft.errors import UserError, suggest
from neuropeft.files import expanded

NETWORKS = {"backbones": ("folder",), "tasks": ("encoder", "agreement")}  # keys that name some


def load_config(raw: Mapping[str, Any], base: Path | None, source: str = "config.yaml") -> Config:
    """Check a configuration and make its paths absolute.

    Args:
        raw: what the YAML file holds.
        base: folder that relative cohort paths are taken from; with None they are left as they are, for those
            who read no scans.
        source: name of the file, for errors.

    Raises:
        UserError: a key is unknown, missing or wrong; one line per mistake, each with its fix.
    """
    try:
        config = Config.model_validate(dict(raw))
    except ValidationError as error:
        # A union reports one mistake per member; the first says enough about the key.
        mistakes: dict[str, str] = {}
        for mistake in error.errors():
            mistakes.setdefault(".".join(_place(mistake["loc"])), _sentence(mistake))
        raise UserError("\n".join(f"{source}: {mistake}" for mistake in mistakes.values())) from error
    if base is None:
        return config
    cohorts = {name: _absolute(name, cohort, base, source) for name, cohort in config.cohorts.items()}
    weights = {
        name: ImportedWeights(
            weights=_existing(value.weights, f"pretraining.{name}.weights", base, source, "file")
        )
        for name, value in config.imported.items()
    }
    found = {"cohorts": cohorts, "pretraining": config.pretraining | weights}
    found |= {place: _with_networks(place, getattr(config, place), base, source) for place in NETWORKS}
    return config.model_copy(update=found)


def _with_networks(place: str, parts: Mapping[str, Any], base: Path, source: str) -> dict[str, Any]:
    """Return backbones or tasks with absolute paths of the networks that they name."""
    return {
        name: one.model_copy(
            update={
                key: _existing(
                    value,
                    f"{place}.{name}.{key}",
                    base,
                    source,
                    "file" if value.endswith(".pt") else "folder",
                )
                for key in NETWORKS[place]
                if (value := getattr(one, key, None))
            }
        )
        for name, one in parts.items()
    }


class _UniqueKeys(yaml.SafeLoader):
    """YAML as usual, but a key that is given twice is an error: the first would be dropped without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_config(path: Path, base: Path | None, *others: Path) -> Config:
    """Read and check a YAML file, into which others are merged as Snakemake does; see `load_config`."""
    raw = read_yaml(path)
    for other in others:
        raw = _merged(raw, read_yaml(other))
    return load_config(raw, base, (others[-1] if others else path).name)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first with the keys of the second, mappings key by key; lists and values are replaced."""
    both = {
        key: _merged(first[key], value)
        for key, value in second.items()
        if isinstance(value, Mapping) and isinstance(first.get(key), Mapping)
    }
    return {**first, **second, **both}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return what a YAML file of a configuration holds.

    Raises:
        UserError: It cannot be read, gives a key twice, or holds something else than keys.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise UserError(
            f"cannot read the configuration {path}: {error.strerror}; give a YAML file"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"cannot read the configuration {path}: {' '.join(str(error).split())}; fix the YAML"
        ) from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys such as `cohorts` and `tasks`")
    return raw


def _absolute(name: str, cohort: Cohort, base: Path, source: str) -> Cohort:
    kinds = {"bids": "folder", "table": "file", "morphometry": "file"}
    paths = {
        key: _existing(value, f"cohorts.{name}.{key}", base, source, kind)
        for key, kind in kinds.items()
        if (value := getattr(cohort, key)) is not None
    }
    return cohort.model_copy(update=paths)


def _existing(value: str, key: str, base: Path, source: str, kind: str) -> str:
    """Return the absolute path of a file or folder, which must exist."""
    path = (base / expanded(value)).resolve()
    if not (path.is_dir() if kind == "folder" else path.is_file()):
        raise UserError(
            f"{source}: `{key}` is {value!r}, but there is no {kind} {path}: give the path of your data"
        )
    return str(path)


def _sentence(mistake: Any) -> str:
    place = _place(mistake["loc"])
    key = ".".join(place)
    kind, message = mistake["type"], mistake["msg"]
    if kind == "extra_forbidden":
        if place[-1] in _ALL_KEYS:
            return f"unknown key `{key}`: {place[-1]!r} is a key of another place; remove it here"
        return f"unknown key `{key}`: {suggest(place[-1], _ALL_KEYS)}"
    if kind == "missing":
        return f"`{key}` is missing: add it"
    if kind == "union_tag_not_found":
        return f"`{key}.kind` is missing: add it"
    if kind == "union_tag_invalid":
        return f"`{key}.kind` is {mistake['ctx']['tag']!r}: choose from {mistake['ctx']['expected_tags']}"
    if kind == "string_pattern_mismatch":
        return f"`{key}`: {mistake['input']!r} is no name; a name has letters, digits and underscores only"
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
        return f"`{key}`: {message}" if key else message
    return f"`{key}`: {message[0].lower()}{message[1:]}, but it is {mistake['input']!r}"


def _place(location: tuple[str | int, ...]) -> list[str]:
    """Return the keys of a mistake's location, without the parts that pydantic adds for unions."""
    parts = [str(part) for part in location]
    if parts[0:1] in (["tasks"], ["methods"], ["backbones"], ["pretraining"]) and len(parts) > 2:
        del parts[2]  # the kind that told which model to check against
    if parts[0:1] == ["cohorts"] and parts[2:3] == ["input"]:
        del parts[3:4]
    return [part for part in parts if "[" not in part and part not in ("str", "int", "float")]


def _keys(schema: Any) -> set[str]:
    """Collect the names of all properties of a JSON schema."""
    if isinstance(schema, list):
        return set().union(*map(_keys, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = schema.get("properties")
    return (set(own) if isinstance(own, dict) else set()) | _keys(list(schema.values()))


_SCHEMA = TypeAdapter(Config).json_schema()
_ALL_KEYS = sorted(_keys(_SCHEMA))


def json_schema() -> str:
    """Return the JSON schema of the configuration as text, for editors."""
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "neuropeft configuration",
    } | _SCHEMA
    return json.dumps(schema, indent=2) + "\n"
