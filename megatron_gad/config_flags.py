"""Names of flags: which sections are flat, which flags exist, what a wrong one was meant to be."""

import difflib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import tyro

# Marks a section whose fields are flags without the section's name: Megatron's.
FLAT = tyro.conf.arg(name="")


def flag_names(*kinds: type[Any]) -> set[str]:
    """Return every flag made from dataclasses whose fields are options or sections of options."""
    names: set[str] = set()
    for kind in kinds:
        hints = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            section = next(iter(get_args(hints[field.name])), hints[field.name])
            if not is_dataclass(section):
                names.add(field.name)
                continue
            is_flat = FLAT in getattr(hints[field.name], "__metadata__", ())
            prefix = "" if is_flat else f"{field.name}."
            names |= {prefix + inner.name for inner in fields(section)}
    return {"--" + name.replace("_", "-") for name in names}


def refuse_unknown(arguments: Sequence[str], known: set[str]) -> None:
    """Raise ValueError naming all unknown flags, each with the nearest that exists.

    arguments: what the parser could not place; the values of unknown flags among them.
    """
    problems = [
        f"unknown flag {flag}; {_remedy(flag, known)}"
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
