"""TOML text to a dataclass of sections and back: unknown keys and wrong types are found here."""

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_type_hints

import pydantic
import tomli
import tomli_w

from megatron_gad.config.removed import REMOVED

T = TypeVar("T")


def read_toml(path: Path, kind: type[T]) -> T:
    """Read a configuration file.

    Args:
        path: the TOML file, UTF-8.
        kind: a dataclass; fields that are dataclasses are tables, the others top-level keys. What
            the file does not mention keeps the field's default.

    Raises:
        ValueError: the file cannot be read or parsed, or holds unknown keys or values of a wrong
            type; names all of them with file and table.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"configuration file {path} cannot be read ({error}); "
            "the path is relative to the folder the command runs in"
        ) from error
    return parse_toml(text, kind, source=str(path))


def parse_toml(text: str, kind: type[T], source: str) -> T:
    """Parse TOML text; as ``read_toml``, where source is the name that errors give the text."""
    try:
        tables = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ValueError(f"{source} is not valid TOML: {error}") from error
    problems = [*_unknown_keys(tables, kind)]
    if not problems:
        try:
            # Strict JSON mode takes exactly what TOML offers: arrays for tuples, 1 for 1.0, no
            # "1" and no true for 1.
            as_json = json.dumps(tables, default=str)
            return pydantic.TypeAdapter(kind).validate_json(as_json, strict=True)
        except pydantic.ValidationError as error:
            problems = [_wrong_type(detail["loc"], detail) for detail in error.errors()]
    raise ValueError("\n".join(f"{source}: {problem}" for problem in problems))


def to_toml(config: Any) -> str:
    """Write a dataclass of sections as TOML that ``parse_toml`` reads back to an equal one.

    TOML has no null: fields that are None are left out, so None has to be their default.
    """
    tables = dataclasses.asdict(config)
    for name in section_types(config.__class__):
        tables[name] = {key: value for key, value in tables[name].items() if value is not None}
    return tomli_w.dumps(tables)


def section_types(kind: type) -> dict[str, type]:
    """Return the fields of a configuration that are tables, with their dataclasses."""
    types = {field.name: field.default_factory for field in dataclasses.fields(kind)}
    return {name: t for name, t in types.items() if isinstance(t, type)}


def list_types(kind: type) -> dict[str, type]:
    """Return the fields of a configuration that are lists of tables, with their dataclasses."""
    hints = get_type_hints(kind)
    items = {name: next(iter(get_args(hint)), None) for name, hint in hints.items()}
    return {n: t for n, t in items.items() if isinstance(t, type) and dataclasses.is_dataclass(t)}


def _unknown_keys(tables: Mapping[str, Any], kind: type) -> Iterator[str]:
    """Yield one message per key that no field has."""
    sections, lists = section_types(kind), list_types(kind)
    top_level = {field.name for field in dataclasses.fields(kind)}
    for name, value in tables.items():
        if name not in top_level:
            what = (
                f"table [{name}]" if isinstance(value, dict) else f"key {name!r} at the top level"
            )
            yield f"unknown {what}; {_nearest(name, top_level, sections)}"
        elif name in lists and isinstance(value, list):
            known = _field_names(lists[name])
            items = cast(list[Any], value)
            keys = [key for item in items for key in _keys(item)]
            for key in dict.fromkeys(key for key in keys if key not in known):
                yield f"unknown key {key!r} in [[{name}]]; {_nearest(key, known, {})}"
        elif name in sections and isinstance(value, dict):
            known = _field_names(sections[name])
            for key in cast(dict[str, Any], value):
                if f"{name}.{key}" in REMOVED:
                    yield f"{name}.{key} is no longer a setting: {REMOVED[f'{name}.{key}']}"
                elif key not in known:
                    yield f"unknown key {key!r} in [{name}]; {_nearest(key, known, sections)}"


def _keys(item: Any) -> list[str]:
    return list(cast(dict[str, Any], item)) if isinstance(item, dict) else []


def _nearest(name: str, candidates: set[str], sections: Mapping[str, type]) -> str:
    """Suggest the nearest name in the place where it was written, or else the table that has it."""
    # A flat name is often put into the wrong table: an exact match elsewhere beats a similar one.
    homes = [table for table, section in sections.items() if name in _field_names(section)]
    if homes:
        return "it belongs in " + " or ".join(f"[{table}]" for table in homes)
    close = difflib.get_close_matches(name.replace("-", "_"), sorted(candidates), n=1)
    if close:
        return f"the nearest name is {close[0]!r}"
    everywhere = {key: table for table, kind in sections.items() for key in _field_names(kind)}
    close = difflib.get_close_matches(name.replace("-", "_"), sorted(everywhere), n=1)
    if close:
        return f"the nearest name is {close[0]!r} in [{everywhere[close[0]]}]"
    return "allowed: " + ", ".join(sorted(candidates))


def _field_names(section: type) -> set[str]:
    return {field.name for field in dataclasses.fields(section)}


def _wrong_type(location: tuple[int | str, ...], detail: Mapping[str, Any]) -> str:
    """Say which key has which value and what it has to be."""
    table, value = location[0], detail["input"]
    if detail["type"] == "dataclass_type":
        return f"{table} = {value!r} is not a table; write [{table}] and its keys below"
    if detail["type"] == "tuple_type" and isinstance(value, dict):
        return f"{table} = {value!r} is not a list; write [[{table}]] and its keys below"
    key = ".".join(str(part) for part in location if isinstance(part, str))
    expected = detail["msg"].replace("Input should be ", "")
    return f"{key} = {value!r} is not allowed; expected {expected}"
