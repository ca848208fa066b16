"""A fault that is put into a copy of the package, to see whether its tests notice."""

from collections.abc import Mapping
from dataclasses import dataclass

ORACLE = "tests/oracle/test_oracle.py::test_a_run_is_what_the_oracle_says"


@dataclass(frozen=True)
class Mutant:
    """One fault.

    name: what the package does wrong with it.
    snippet: source code that occurs once in the whole package.
    replacement: what stands there instead.
    tests: pytest's node ids of the tests that have to fail, the cheapest first.
    excuse: why no test can see the fault; empty for a fault that has to be seen.
    """

    name: str
    snippet: str
    replacement: str
    tests: tuple[str, ...]
    excuse: str = ""


class SnippetError(ValueError):
    """A snippet that is not exactly once in the package."""


def in_stages(*names: str) -> tuple[str, ...]:
    """Return the node ids of tests of single steps."""
    return tuple(f"tests/unit/stages/test_stages.py::{name}" for name in names)


def in_settings(*names: str) -> tuple[str, ...]:
    """Return the node ids of tests of what a step takes from the configuration."""
    return tuple(f"tests/unit/stages/test_stage_settings.py::{name}" for name in names)


def oracle(case: str) -> tuple[str, ...]:
    """Return the node id of a run that is held against the oracle."""
    return (f"{ORACLE}[{case}]",)


def mutated_file(mutant: Mutant, sources: Mapping[str, str]) -> tuple[str, str]:
    """Return the path of the file that holds the snippet, and its text with the fault.

    sources: path -> text of every module. Files are searched and not named, so that moving code
    leaves the mutants as they are.

    Raises SnippetError unless the snippet occurs exactly once.
    """
    found = {path: text.count(mutant.snippet) for path, text in sources.items()}
    places = [f"{path} ({count} times)" for path, count in found.items() if count]
    if sum(found.values()) != 1:
        raise SnippetError(
            f"mutant {mutant.name!r}: its snippet is in {', '.join(places) or 'no file'}; it has "
            f"to be in the package once. Adapt it to the code of today:\n{mutant.snippet}"
        )
    path = next(path for path, count in found.items() if count)
    return path, sources[path].replace(mutant.snippet, mutant.replacement)
