"""The list of mutants fits the package and its tests; ``make mutants`` runs it."""

import ast
from functools import cache

import pytest

from tests.mutants.catalogue import MUTANTS
from tests.mutants.copies import ROOT, sources
from tests.mutants.mutant import ORACLE, Mutant, SnippetError, mutated_file
from tests.oracle.cases import CASES

SOURCES = sources()


def test_there_are_mutants_enough_and_each_has_its_name() -> None:
    assert len(MUTANTS) >= 80
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_changes_one_place_into_other_code(mutant: Mutant) -> None:
    path, text = mutated_file(mutant, SOURCES)
    assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(SOURCES[path]))


@cache
def functions_of(path: str) -> set[str]:
    """Return the names of the functions that a file of tests has."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    for test in {test for mutant in MUTANTS for test in mutant.tests}:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), test
        assert not name or name.split("[")[0] in functions_of(path), test
        if name and test.startswith(ORACLE):
            assert name.partition("[")[2].removesuffix("]") in CASES, test


@pytest.mark.parametrize("source", ["x = 1\n", "y = 1\ny = 1\n"])
def test_a_snippet_that_is_not_there_once_is_told_with_the_mutants_name(source: str) -> None:
    mutant = Mutant("a fault", "y = 1", "y = 2", ())
    with pytest.raises(SnippetError, match="'a fault'"):
        mutated_file(mutant, {"a.py": source})
