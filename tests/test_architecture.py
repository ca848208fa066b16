"""The shape of the code: who may import whom, and how long things may get."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "megatron_gad"
# A module belongs to the longest name that starts its own. Imports go to lower layers
# only, or to modules of the same entry.
LAYERS = (
    ("types", "errors", "files", "environment", "cpu_seam"),
    ("storage", "manifest"),
    ("config",),
    ("algorithms", "data", "models"),
    ("training", "engines"),
    ("data.teacher", "evaluation"),
    ("checks",),
    ("planning",),
    ("runtime",),
    ("stages", "reporting"),
    ("resume",),
    ("train",),
    ("__main__",),
)
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))
SOURCES = [
    path for top in (PACKAGE, "examples", "tools", "tests") for path in (ROOT / top).rglob("*.py")
]
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400


@cache
def tree(path: Path) -> ast.Module:
    """Return the parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """Return a file's dotted name."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in MODULES}
NAMES = set(FILES)


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports anywhere; ``a.b`` for ``from a import b``."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """Return the modules of this package that a file imports."""
    ours = [name for name in imports(path) if name.split(".")[0] == PACKAGE]
    return {name if name in NAMES else name.rpartition(".")[0] for name in ours}


def place(module: str) -> tuple[int, str]:
    """Return layer and entry of a module."""
    inner = module.removeprefix(PACKAGE).removeprefix(".")
    entries = [(number, entry) for number, layer in enumerate(LAYERS) for entry in layer]
    fitting = [(n, e) for n, e in entries if f"{inner}.".startswith(f"{e}.")]
    assert fitting, f"{module} is in no layer; give it a place in LAYERS and in CONTRIBUTING.md"
    return max(fitting, key=lambda found: len(found[1]))


def where(paths: list[Path], forbidden: str) -> list[str]:
    """Return the files that import a package, or one below it."""
    return [
        name_of(p) for p in paths if any(f"{i}.".startswith(f"{forbidden}.") for i in imports(p))
    ]


def outside(*folders: str) -> list[Path]:
    """Return the modules that are in none of the folders."""
    return [p for p in MODULES if p.relative_to(ROOT / PACKAGE).parts[0] not in folders]


def inside(*folders: str) -> list[Path]:
    """Return the modules that are in one of the folders."""
    return [p for p in MODULES if p not in outside(*folders)]


def test_imports_go_down_the_layers() -> None:
    wrong = []
    for name in sorted(NAMES - {PACKAGE}):
        layer, entry = place(name)
        for imported in sorted(own_imports(FILES[name]) - {PACKAGE}):
            other_layer, other = place(imported)
            is_within = other_layer == layer and other == entry
            if other_layer >= layer and not is_within:
                wrong.append(f"{name} must not import {imported}")
    assert wrong == []


def test_imports_have_no_cycle() -> None:
    graph = {name_of(path): own_imports(path) - {name_of(path)} for path in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


def test_heavy_and_optional_packages_stay_in_their_folders() -> None:
    assert where(outside("training", "models"), "megatron.core") == []
    assert where(outside("engines"), "sglang") == []
    assert where(inside("algorithms", "data"), "torch.distributed") == []
    assert where(inside("config"), "torch") == []


def test_algorithms_import_torch_and_types_only() -> None:
    allowed = {*sys.stdlib_module_names, "torch", f"{PACKAGE}.types", f"{PACKAGE}.algorithms"}
    for path in inside("algorithms"):
        for name in imports(path):
            parents = {".".join(name.split(".")[:n]) for n in (1, 2)}
            assert parents & allowed, f"{name_of(path)} must not import {name}"


def test_the_environment_is_read_in_one_place() -> None:
    readers = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv", "putenv")
        and getattr(node.value, "id", "") == "os"
    }
    # Engines are beside training: one hands the environment on, one changes it for a moment.
    engines = {"engines.sglang.engine", "engines.sglang.weight_group"}
    allowed = {"environment"} | engines
    assert {name.removeprefix(f"{PACKAGE}.") for name in readers} <= allowed


def test_functions_and_files_fit_a_reader() -> None:
    too_long = []
    for path in SOURCES:
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > MAX_FILE_LINES:
            too_long.append(f"{name_of(path)} has {num_lines} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    too_long.append(f"{name_of(path)}.{node.name} has {length} lines")
    assert too_long == []
