"""Copies of the project, in which tests run on the package with a fault or without one."""

import compileall
import importlib
import multiprocessing
import os
import py_compile
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.mutants.mutant import Mutant, mutated_file

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "megatron_gad"
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info", "build", "dist")
OPTIONS = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "--no-header"]
CODE_SUFFIX = ".py"


@dataclass(frozen=True)
class Outcome:
    """What became of a run of tests.

    status: pytest's exit status; None for a run that was ended after its time.
    failed: the first test that failed, "" if none did.
    """

    status: int | None
    failed: str
    seconds: float
    output: str


def sources(root: Path = ROOT) -> dict[str, str]:
    """Return path -> text of every module of the package; paths are relative to the root."""
    files = sorted((root / PACKAGE).rglob("*" + CODE_SUFFIX))
    return {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in files}


@contextmanager
def copy_of_project() -> Iterator[Path]:
    """Copy what tests need into a temporary folder that is gone after the block."""
    with TemporaryDirectory(prefix="mutants_") as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        # Compiled code that belongs to a text and not to a time: a fault is never overlooked.
        by_text = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(copy, quiet=2, invalidation_mode=by_text)
        yield copy


@contextmanager
def applied(mutant: Mutant, copy: Path) -> Iterator[None]:
    """Put a fault into a copy, and take it out again after the block."""
    texts = sources(copy)
    path, text = mutated_file(mutant, texts)
    (copy / path).write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        (copy / path).write_text(texts[path], encoding="utf-8")


def run_tests(copy: Path, tests: Sequence[str], timeout_s: float) -> Outcome:
    """Run tests of a copy in a process of their own, up to the first that fails."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.mutants.preload"])
    log = copy.parent / "output.txt"
    start = time.monotonic()
    process = context.Process(target=_test, args=(str(copy), list(tests), str(log)))
    process.start()
    process.join(timeout_s)
    status = process.exitcode
    if status is None and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)  # with the ranks that its tests started
        process.join()
    output = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::\w+)", output, re.MULTILINE)
    return Outcome(status, failed[1] if failed else "", time.monotonic() - start, output)


def _test(copy: str, tests: list[str], log: str) -> None:
    """Run pytest in a copy, and end this process with its status."""
    os.setsid()
    with open(log, "w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(copy)
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": copy, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    _forget_own_modules()
    sys.path[:] = [copy, *(path for path in sys.path if path not in ("", str(ROOT)))]
    importlib.invalidate_caches()
    sys.exit(int(pytest.main([*OPTIONS, *tests])))


def _forget_own_modules() -> None:
    """Let the package and its tests be imported anew, but for what has changed how to import."""
    hooks = {type(finder).__module__ for finder in sys.meta_path}
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", PACKAGE)]:
        if name not in hooks:
            del sys.modules[name]
