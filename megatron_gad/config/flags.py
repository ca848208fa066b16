"""Names of flags: which sections are flat, which flags exist or pass on, what a wrong one meant."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import tyro

from megatron_gad.config.removed import REMOVED
from megatron_gad.config.rollout import ArgumentValue

# Marks a section whose fields are flags without the section's name: Megatron's.
FLAT = tyro.conf.arg(name="")
# Marks a field that has no flag.
FILE_ONLY: Any = tyro.conf.Suppress


def flag_names(*kinds: type[Any]) -> set[str]:
    """Return every flag made from dataclasses whose fields are options or sections of options."""
    names: set[str] = set()
    for kind in kinds:
        hints = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            if FILE_ONLY in getattr(hints[field.name], "__metadata__", ()):
                continue
            section = next(iter(get_args(hints[field.name])), hints[field.name])
            if not is_dataclass(section):
                names.add(_flag(field.name))
                continue
            prefix = _prefix(hints[field.name], field.name)
            names |= {_flag(prefix + inner.name) for inner in fields(section)}
    return names


def removed_flags(kind: type[Any]) -> dict[str, str]:
    """Return the flags of a configuration's keys that are refused by name, with their remedies."""
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, str] = {}
    for key, remedy in REMOVED.items():
        section, _, name = key.rpartition(".")
        found[_flag(_prefix(hints[section], section) + name)] = remedy
    return found


def _prefix(hint: Any, section: str) -> str:
    """Return what the flags of a section begin with."""
    return "" if FLAT in getattr(hint, "__metadata__", ()) else f"{section}."


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def take_passed_on(
    arguments: Sequence[str], section: str, own: set[str]
) -> tuple[list[str], dict[str, ArgumentValue]]:
    """Take the flags ``--<section>-<name>`` out of a command line.

    They belong to a program that is started, and are not known here: ``--x-a 3``, ``--x-a=3``,
    ``--x-a 1 2 4`` for a list of numbers, and ``--x-a`` alone, which is true; a TOML file behind
    one is the configuration, and no value. own: names that the section has itself, which go on as
    ``--<section>.<name>``.

    Returns the other arguments, and {name with underscores: value of the type it looks like}.
    """
    kept: list[str] = []
    taken: dict[str, ArgumentValue] = {}
    rest = list(arguments)
    while rest:
        flag, is_joined, joined = rest.pop(0).partition("=")
        name = flag.removeprefix(f"--{section}-").replace("-", "_")
        if not flag.startswith(f"--{section}-"):
            kept.append(flag + is_joined + joined)
        elif name in own:
            kept.append(f"--{section}.{name.replace('_', '-')}{is_joined}{joined}")
        elif is_joined:
            taken[name] = _typed(joined)
        else:
            taken[name] = _take_value(rest)
    return kept, taken


def _take_value(rest: list[str]) -> ArgumentValue:
    """Take what follows a flag, which may be nothing, or numbers."""
    if not rest or rest[0].startswith("--") or rest[0].endswith(".toml"):
        return True
    values = [_typed(rest.pop(0))]
    while rest and _is_number(values[-1]) and _is_number(_typed(rest[0])):
        values.append(_typed(rest.pop(0)))
    return values if len(values) > 1 else values[0]


def _is_number(value: bool | int | float | str) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _typed(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def refuse_unknown(arguments: Sequence[str], known: set[str], removed: Mapping[str, str]) -> None:
    """Raise ValueError naming all unknown flags, each with the nearest that exists.

    arguments: what the parser could not place; the values of unknown flags among them.
    removed: flags that are refused by name, with their remedies.
    """
    problems = [
        f"{flag} is no longer a flag: {removed[flag]}"
        if flag in removed
        else f"unknown flag {flag}; {_remedy(flag, known)}"
        for flag in (argument.split("=")[0] for argument in arguments)
        if flag.startswith("--")
    ]
    if arguments:
        raise ValueError("\n".join(problems) or f"arguments out of place: {' '.join(arguments)}")


def _remedy(flag: str, known: set[str]) -> str:
    wanted = flag.replace("_", "-")
    last = {name.removeprefix("--").rpartition(".")[2]: name for name in sorted(known)}
    close = difflib.get_close_matches(wanted, sorted(known), n=1)
    if not close:
        # A dotted flag without its section, or in another.
        bare = wanted.removeprefix("--").rpartition(".")[2]
        close = [last[name] for name in difflib.get_close_matches(bare, list(last), n=1)]
    return f"the nearest is {close[0]}" if close else "megatron_gad --help lists all"
