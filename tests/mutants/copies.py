"""Copies of the project, in which tests run on the package with a fault or without one."""

import compileall
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.mutants.mutant import Mutant, mutated_file

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "megatron_gad"
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "__pycache__", "*.egg-info", "build", "dist")
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


class TestServer:
    """Runs tests of a copy, each lot in a process that need not import torch; see ``server``."""

    __test__ = False  # for pytest

    def __init__(self, copy: Path) -> None:
        self.copy = copy
        self._process: Any = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.server"],
            cwd=ROOT,
            env=os.environ | {"PROJECT": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, tests: Sequence[str], timeout_s: float) -> Outcome:
        """Run tests up to the first that fails."""
        log = self.copy.parent / "output.txt"
        start = time.monotonic()
        asked = {"copy": str(self.copy), "tests": tests, "log": str(log), "timeout_s": timeout_s}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        status = json.loads(self._process.stdout.readline())
        output = log.read_text(encoding="utf-8", errors="replace")
        failed = re.search(r"^(?:FAILED|ERROR) (\S+::\w+)", output, re.MULTILINE)
        return Outcome(status, failed[1] if failed else "", time.monotonic() - start, output)

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def server_of_copy() -> Iterator[TestServer]:
    """Copy the project and start the process that tests the copy."""
    with copy_of_project() as copy, closing(TestServer(copy)) as server:
        yield server
