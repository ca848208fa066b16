"""Put faults into the package one by one, and see whether the tests notice: ``make mutants``."""

import argparse
import hashlib
import json
import queue
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.mutants.catalogue import MUTANTS, SUBJECTS
from tests.mutants.copies import ROOT, Outcome, TestServer, applied, server_of_copy, sources
from tests.mutants.mutant import Mutant, mutated_file

LEAST_KILLED = 0.95
ALL_PASSED, SOME_FAILED = 0, 1
KILLED, SURVIVED, BROKEN = "killed", "survived", "broken"


@dataclass(frozen=True)
class Result:
    """What became of a mutant.

    outcome: killed, survived, or broken if the tests could not be run with it.
    seen_by: the test that failed first; "timeout" if the tests did not end.
    key: of the mutant and the file it changes; a result counts for these alone.
    """

    name: str
    outcome: str
    seen_by: str
    seconds: float
    key: str


def main(argv: Sequence[str]) -> int:
    """Run what is asked for and return the exit status."""
    options = _parser().parse_args(argv)
    chosen = [m for m in MUTANTS if not options.only or _mentions(m, options.only)]
    chosen = [m for m in chosen if not _mentions(m, options.without)]
    if options.list:
        print("\n".join(f"{mutant.name}\n    {' '.join(mutant.tests)}" for mutant in chosen))
        return 0
    results = {} if options.fresh else _read(options.results)
    keys = _keys(chosen)
    to_run = [m for m in chosen if not _was_killed(results.get(m.name), keys[m.name])]
    if to_run and not _passes_without_faults(to_run, options.timeout):
        return 1
    for result in _run_all(to_run, keys, options.jobs, options.timeout):
        results[result.name] = result
        _append(options.results, result)
        print(f"{result.outcome:8} {result.seconds:5.0f} s  {result.name}", flush=True)
    print(_table(chosen, results))
    return _verdict(chosen, results)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    words = "mutants with one of these words in their name or their tests"
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help=words)
    parser.add_argument("--without", nargs="+", default=[], metavar="WORD", help=f"no {words}")
    parser.add_argument("--list", action="store_true", help="print the mutants and their tests")
    parser.add_argument("--jobs", type=int, default=1, help="mutants that are tested at once")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one mutant")
    parser.add_argument("--fresh", action="store_true", help="take no result of an earlier run")
    results = ROOT / "runs/mutants.jsonl"
    parser.add_argument("--results", type=Path, default=results, help="where results are kept")
    return parser


def _mentions(mutant: Mutant, words: Sequence[str]) -> bool:
    text = " ".join((mutant.name, *mutant.tests))
    return any(word in text for word in words)


def _keys(mutants: Sequence[Mutant]) -> dict[str, str]:
    """Return what the result of each mutant depends on, but for the tests themselves."""
    texts = sources()
    return {
        mutant.name: hashlib.sha256(
            json.dumps([asdict(mutant), mutated_file(mutant, texts)]).encode()
        ).hexdigest()[:16]
        for mutant in mutants
    }


def _was_killed(result: Result | None, key: str) -> bool:
    return result is not None and result.key == key and result.outcome == KILLED


def _passes_without_faults(mutants: Sequence[Mutant], timeout_s: float) -> bool:
    """Run all tests that the mutants name on the package as it is."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    files = sorted({test for test in tests if "::" not in test})
    tests = [*files, *(test for test in tests if test.split("::")[0] not in files)]
    with server_of_copy() as server:
        outcome = server.run(tests, timeout_s * len(tests))
    if outcome.status != ALL_PASSED:
        print(f"{outcome.output}\nthe tests do not pass without a fault; mend them first")
    else:
        print(f"without a fault all tests pass, in {outcome.seconds:.0f} s", flush=True)
    return outcome.status == ALL_PASSED


def _run_all(
    mutants: Sequence[Mutant], keys: dict[str, str], num_jobs: int, timeout_s: float
) -> Iterator[Result]:
    """Yield the results as they come; each job has a copy of the project."""
    idle: queue.SimpleQueue[TestServer] = queue.SimpleQueue()

    def run_one(mutant: Mutant) -> Result:
        server = idle.get()
        try:
            with applied(mutant, server.copy):
                outcome = server.run(mutant.tests, timeout_s)
        finally:
            idle.put(server)
        return _result(mutant, outcome, keys[mutant.name])

    with ExitStack() as stack, ThreadPoolExecutor(num_jobs) as pool:
        for _ in range(num_jobs if mutants else 0):
            idle.put(stack.enter_context(server_of_copy()))
        yield from pool.map(run_one, mutants)


def _result(mutant: Mutant, outcome: Outcome, key: str) -> Result:
    if outcome.status is None:
        return Result(mutant.name, KILLED, "timeout", outcome.seconds, key)
    if outcome.status == ALL_PASSED:
        return Result(mutant.name, SURVIVED, "", outcome.seconds, key)
    if outcome.status == SOME_FAILED:
        return Result(mutant.name, KILLED, outcome.failed, outcome.seconds, key)
    print(outcome.output)
    return Result(mutant.name, BROKEN, "", outcome.seconds, key)


def _read(path: Path) -> dict[str, Result]:
    """Return the newest result of every mutant; a line that is cut off does not count."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [Result(**json.loads(line)) for line in lines if line.endswith("}")]
    return {result.name: result for result in found}


def _append(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def _table(mutants: Sequence[Mutant], results: dict[str, Result]) -> str:
    """Return Markdown: subject by subject, each mutant with the test that sees it."""
    lines: list[str] = []
    for subject, members in SUBJECTS.items():
        rows = [_row(m, results[m.name]) for m in members if m in mutants]
        if rows:
            lines += ["", f"### {subject}", "", "| fault | seen by |", "|---|---|", *rows]
    return "\n".join(lines)


def _row(mutant: Mutant, result: Result) -> str:
    if result.outcome == KILLED:
        return f"| {mutant.name} | {_short(result.seen_by)} |"
    return f"| {mutant.name} | **{result.outcome}**: {mutant.excuse or 'NOT EXPLAINED'} |"


def _short(test: str) -> str:
    path, _, name = test.partition("::")
    return f"`{path.removeprefix('tests/')}`, `{name}`" if name else test


def _verdict(mutants: Sequence[Mutant], results: dict[str, Result]) -> int:
    """Print the counts; return 1 if too few were killed or one is not explained."""
    killed = [m for m in mutants if results[m.name].outcome == KILLED]
    others = [m for m in mutants if m not in killed]
    share = len(killed) / len(mutants)
    print(f"\n{len(killed)} of {len(mutants)} mutants are killed ({share:.1%})")
    for mutant in others:
        why = mutant.excuse or "not explained: strengthen a test, or say why none can see it"
        print(f"{results[mutant.name].outcome}: {mutant.name}\n    {why}")
    for mutant in (m for m in killed if m.excuse):
        print(f"killed after all; take its excuse out: {mutant.name}")
    is_unexplained = any(not m.excuse or results[m.name].outcome == BROKEN for m in others) or any(
        m.excuse for m in killed
    )
    return int(share < LEAST_KILLED or is_unexplained)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
