"""Collect from a bad endpoint, kill the collector again and again, and compare every row.

    python -m tests.soak_collector --rows 10000 --kills 5

The endpoint fails the first attempts at some prompts in all ways that it knows. The collector is
the real command, and its kills are real. Exit status 0 if nothing was lost, doubled or changed.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from tests.hostile_teacher import MODEL, Reply, completion, hostile_teacher, http, ok

ROOT = Path(__file__).resolve().parents[1]
LAST_BAD_ATTEMPT = 3
CHARACTERS = (
    "plain", "\U0001f600 \u202e", "nul \x00", "\u2028 \u2029 \x85 \x0b \x0c", "\ufeffmark",
    "\r\n\t", '" \\ /', "e\u0301", "\uffff\ufffe", "  both ends  \n",
)  # fmt: skip


@dataclass(frozen=True)
class Soak:
    """How much to collect, and how much goes wrong.

    Attributes:
        rows: prompts to collect.
        kills: kills of the collector, evenly over the rows.
        bad: share of the first attempts that fail.
        concurrency: questions in flight.
        seed: of what fails.
    """

    rows: int = 10_000
    kills: int = 5
    bad: float = 0.22
    concurrency: int = 32
    seed: int = 0


@dataclass
class BadTeacher:
    """Answers prompts, and fails some attempts.

    num_good: prompt -> good answers sent, each of which is paid for.
    num_bad: kind of failure -> how often it was sent.
    """

    soak: Soak
    num_good: Counter[str] = field(default_factory=Counter[str])
    num_bad: Counter[str] = field(default_factory=Counter[str])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, body: dict[str, Any], attempt: int) -> Reply:
        """Return the reply to one attempt."""
        prompt = body["messages"][-1]["content"]
        draw = random.Random(f"{self.soak.seed}/{attempt}/{prompt}")
        is_bad = attempt <= LAST_BAD_ATTEMPT and draw.random() < self.soak.bad
        kind = draw.choice([*FAILURES]) if is_bad else ""
        with self.lock:
            if kind:
                self.num_bad[kind] += 1
            else:
                self.num_good[prompt] += 1
        return FAILURES[kind](prompt) if kind else good(prompt)


def expected_text(prompt: str) -> str:
    """Return what the teacher answers; some answers are long."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    number = int(digest[:8], 16)
    return CHARACTERS[number % len(CHARACTERS)] + digest + "z" * (50_000 * (number % 100 == 0))


def good(prompt: str) -> Reply:
    """Return the answer to a prompt."""
    return ok(completion(expected_text(prompt)))


def refused(status: int, *headers: str) -> Callable[[str], Reply]:
    """Return a maker of replies with an error."""
    body = json.dumps({"error": {"message": "on purpose"}})
    return lambda prompt: Reply(http(status, body, *headers))


# What does not pass by itself is listed as failed, and asked again by the next run.
FAILURES: dict[str, Callable[[str], Reply]] = {
    "429": refused(429),
    "429 with a wait": refused(429, "Retry-After: 0.05"),
    "429 with a date": refused(429, "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT"),
    "408": refused(408),
    "500": refused(500),
    "503": refused(503),
    "400": refused(400),
    "page of a gateway": lambda prompt: Reply(http(502, "<html>bad</html>")),
    "error with status 200": lambda prompt: ok({"error": {"message": "no", "code": 429}}),
    "reset": lambda prompt: Reply(b"", is_cut=True),
    "reset midway": lambda prompt: Reply(good(prompt).raw[:200], is_cut=True),
    "cut JSON": lambda prompt: Reply(http(200, good(prompt).raw.split(b"\r\n\r\n")[1][:-20])),
    "list": lambda prompt: ok([]),
    "half a surrogate pair": lambda prompt: ok(completion("x \ud800")),
    "no message": lambda prompt: ok(completion("", choices=[None])),
    "empty": lambda prompt: ok(completion("")),
    "blank": lambda prompt: ok(completion(" \n ")),
    "filtered": lambda prompt: ok(
        completion("", choices=[{"message": {"content": "x"}, "finish_reason": "content_filter"}])
    ),
}


def run(soak: Soak, folder: Path) -> list[str]:
    """Collect with kills until all rows are there; return what is wrong with them."""
    prompts = [f"{CHARACTERS[n % len(CHARACTERS)]} {n}" for n in range(soak.rows)]
    lines = [json.dumps({"id": f"p{n}", "content": prompt}) for n, prompt in enumerate(prompts)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    out = folder / "out.jsonl"
    teacher = BadTeacher(soak)
    seen: set[bytes] = set()
    with hostile_teacher(teacher) as server:
        for kill in range(1, soak.kills + 1):
            with _collector(soak, folder, server.base_url) as process:
                _wait_for_rows(process, out, kill * soak.rows // (soak.kills + 1))
                process.kill()
            seen |= {*out.read_bytes().splitlines(keepends=True)}
            print(f"kill {kill}: {len(seen)} rows", flush=True)
        for _ in range(LAST_BAD_ATTEMPT + 1):
            with _collector(soak, folder, server.base_url) as process:
                status = process.wait()
            if status != 1:
                break
    print(f"bad replies: {dict(teacher.num_bad)}; good ones: {teacher.num_good.total()}")
    whole_lines_seen = {line for line in seen if line.endswith(b"\n")}
    wrong = [] if status == 0 else [f"the collector ended with status {status}"]
    return wrong + _compare(soak, prompts, out, whole_lines_seen, teacher)


def _compare(
    soak: Soak, prompts: list[str], out: Path, seen: set[bytes], teacher: BadTeacher
) -> list[str]:
    lines = out.read_bytes().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    wrong: list[str] = []
    if [row["id"] for row in rows] != [f"p{n}" for n in range(soak.rows)]:
        wrong.append(f"{len(rows)} rows are not the {soak.rows} prompts, each once and in order")
    elif [row["content"][0]["content"] for row in rows] != prompts:
        wrong.append("a row holds another prompt")
    changed = sum(
        row["teacher_response"] != expected_text(row["content"][0]["content"]) for row in rows
    )
    if changed:
        wrong.append(f"{changed} rows hold another text than was sent")
    if not seen <= {*lines}:
        wrong.append(f"{len(seen - {*lines})} rows that were written were lost or changed")
    # A kill may lose the answers in flight and nothing else, so nothing else is paid for twice.
    most = soak.rows + soak.kills * soak.concurrency
    if teacher.num_good.total() > most:
        wrong.append(f"{teacher.num_good.total()} answers were paid for; {most} at most would do")
    if not {*FAILURES} <= {*teacher.num_bad}:
        wrong.append(f"never failed by {', '.join({*FAILURES} - {*teacher.num_bad})}: more rows")
    return wrong


def _collector(soak: Soak, folder: Path, base_url: str) -> "subprocess.Popen[bytes]":
    command = [
        *(sys.executable, "tools/collect_teacher.py", "--model", MODEL, "--base-url", base_url),
        *("--prompts", str(folder / "prompts.jsonl"), "--out", str(folder / "out.jsonl")),
        *("--concurrency", str(soak.concurrency), "--first-wait-s", "0.01"),
        *("--stop-after-failures", "0", "--no-show-progress"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)


def _wait_for_rows(process: "subprocess.Popen[bytes]", out: Path, count: int) -> None:
    while not out.exists() or out.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "the collector ended by itself"
        time.sleep(0.01)


def main() -> int:
    """Collect in a temporary folder and say what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        wrong = run(tyro.cli(Soak, description=__doc__), Path(folder))
    print("\n".join(wrong) or "nothing was lost, doubled or changed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
