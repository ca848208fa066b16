"""Write the tables of docs/configuration.md from the configuration's own help texts.

    python tools/configuration_tables.py

The text around the tables is written by hand. A test fails if the tables are not those of the code.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser

from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import list_types, section_types

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = "| key | default | what it does |\n|---|---|---|\n"
TABLE = re.compile(r"\| key \| default \| what it does \|\n(?:\|.*\n)+")
# More choices than these are named elsewhere.
MOST_CHOICES = 7


def with_tables(page: str) -> str:
    """Return the page with the table of each section, which follows its heading, as in the code."""
    sections = {**section_types(RunConfig), **list_types(RunConfig)}
    top = _table(RunConfig, [f for f in fields(RunConfig) if f.name not in sections], sections)
    before, *parts = re.split(r"(?m)^(?=### \[)", TABLE.sub(lambda _: top, page, count=1))
    made = [before]
    missing = dict(sections)
    for part in parts:
        name = part.removeprefix("### ").split("\n")[0].strip("[]")
        kind = missing.pop(name)
        table = _table(kind, fields(kind), sections)
        text, count = TABLE.subn(lambda _, table=table: table, part, count=1)
        assert count == 1, f"{PAGE} has no table below ### [{name}]"
        made.append(text)
    assert not missing, f"{PAGE} has no section for {', '.join(missing)}"
    return "".join(made)


def _table(kind: type, rows: Any, sections: dict[str, type]) -> str:
    return HEAD + "".join(_row(kind, field, sections) for field in rows)


def _row(kind: type, field: Field[Any], sections: dict[str, type]) -> str:
    names = {f"{name}.{f.name}" for name, section in sections.items() for f in fields(section)}
    text, hint = _help_texts(kind)[field.name].rstrip("."), get_type_hints(kind)[field.name]
    text, choices = _marked(text, names), [*_choices(hint)]
    if 1 < len(choices) <= MOST_CHOICES:
        some = "Any of" if get_origin(hint) is tuple else "One of"
        text += f". {some} {', '.join(f'`{json.dumps(choice)}`' for choice in choices)}"
    return f"| `{field.name}` | {_default(field)} | {text} |\n"


def _help_texts(kind: type) -> dict[str, str]:
    """Return the text of every field, those of base classes among them."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if is_dataclass(each) and each.__doc__:
            for found in docstring_parser.parse(each.__doc__).params:
                texts[found.arg_name] = " ".join((found.description or "").split())
    return texts


def _marked(text: str, names: set[str]) -> str:
    """Mark as code what is: quoted values, keys and settings, flags, tags, tables in braces."""
    keys = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    code = (
        r'\{.*?\}|[\w/]*<\w+>|"[\w.:]*"|--[\w-]+ \d+'
        rf'|(?<![\w.])(?:{keys}|\w+_\w+)(?![\w.]\w)(?: = (?:"\w+"|\d+))?'
    )
    return re.sub(f"``(.+?)``|({code})", lambda found: f"`{found[1] or found[2]}`", text)


def _choices(hint: Any) -> Iterator[Any]:
    """Yield the values that a type names."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        for inner in get_args(hint):
            yield from _choices(inner)


def _default(field: Field[Any]) -> str:
    made = field.default_factory
    value = field.default if made is MISSING else made()
    if value is None:
        return "not set"
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
