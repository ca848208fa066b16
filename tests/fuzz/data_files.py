"""Data files that are cut, mixed, of another kind, or hold what no row should."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.e2e.tiny_run import ROOT, assets
from tests.fuzz.outcome import problem_of, write

PLAIN: tuple[Any, ...] = (
    None, True, 0, -1, 10**400, 1e308, float("nan"), "", " ", "west", "a" * 20_000, [], {}, [[]],
    [None], [1, "a"], {"a": {}}, "\x00", "\ud800", "\u202e\ufeff", "<|end|>", "{{ x }}", "\r\n",
    ["one", "two"], [""], {"content": "west"}, {"role": "assistant", "content": None},
)  # fmt: skip
ROLES = ("user", "assistant", "system", "tool", "human", "gpt", "", None, 3, "\ud800")
COLUMNS = ("content", "teacher_response", "messages", "conversations", "instruction", "output", "x")
HEADS: tuple[bytes, ...] = (b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b\x08\x00", b"PAR1", b"[")


def problem(number: int, folder: Path) -> str:
    """Try one file, made from its number; return what is wrong, empty if nothing is."""
    draw = random.Random(number)
    name, content = draw.choice(KINDS)(draw)
    file = write(folder / f"{number}" / name, content)
    path = draw.choice((file, file, file.parent))
    flags = ["--save", str(folder / "run"), "--data.path", str(path), "--data.eval-path", ""]
    flags += ["--student.path", str(assets() / "student"), "--stages", "seqkd", "--dry-run"]
    if draw.random() < 0.3:
        flags += ["--data.prompt-column", draw.choice(COLUMNS)]
    found = problem_of([str(ROOT / "examples/tiny/run.toml"), *flags], must_refuse=False)
    return f"data file {number}: {name} {content[:300]!r}\n{found}" if found else ""


def _rows(draw: random.Random) -> list[dict[str, Any]]:
    rows = [{"content": "face west", "teacher_response": "west"} for _ in range(4)]
    for _ in range(draw.choice((0, 1, 1, 2, 5))):
        row: dict[Any, Any] = dict(draw.choice(rows))
        kind = draw.random()
        if kind < 0.5:
            row[draw.choice(COLUMNS)] = draw.choice(PLAIN)
        elif kind < 0.85:
            row[draw.choice(COLUMNS)] = [_message(draw) for _ in range(draw.randint(0, 4))]
        else:
            row.pop(draw.choice([*row]))
        rows.insert(draw.randint(0, len(rows)), row)
    return rows


def _message(draw: random.Random) -> Any:
    names = draw.choice((("role", "content"), ("from", "value"), ("role", "text")))
    message: dict[str, Any] = {names[0]: draw.choice(ROLES), names[1]: "west"}
    if draw.random() < 0.3:
        message[names[1]] = draw.choice(PLAIN)
    if draw.random() < 0.2:
        message[draw.choice(("tool_calls", "name", "reasoning", "x"))] = draw.choice(PLAIN)
    return message if draw.random() < 0.9 else draw.choice(PLAIN)


def _json_lines(draw: random.Random) -> tuple[str, bytes]:
    rows: list[Any] = list(_rows(draw))
    if draw.random() < 0.3:
        rows.insert(draw.randint(0, len(rows)), draw.choice(PLAIN))
    end = draw.choice(("\n", "\n", "\r\n", "\n\n", ""))
    return "rows.jsonl", end.join(map(json.dumps, rows)).encode() + b"\n"


def _json_array(draw: random.Random) -> tuple[str, bytes]:
    rows = _rows(draw)
    whole = draw.choice((rows, {"data": rows}, {"train": rows}, rows[0], [], [rows], "west", None))
    return draw.choice(("rows.json", "rows.jsonl")), json.dumps(whole).encode()


def _damaged(draw: random.Random) -> tuple[str, bytes]:
    """Return a good file with bytes cut off, changed or put before."""
    name, content = draw.choice((_json_lines, _json_array, _table))(draw)
    for _ in range(draw.randint(1, 3)):
        where = draw.randint(0, max(0, len(content) - 1))
        kind = draw.random()
        if kind < 0.3:
            content = content[:where]
        elif kind < 0.7:
            content = content[:where] + bytes([draw.randint(0, 255)]) + content[where + 1 :]
        else:
            content = draw.choice(HEADS) + content
    return name, content


def _deep(draw: random.Random) -> tuple[str, bytes]:
    """Return JSON that is nested deeper than a parser recurses."""
    depth = draw.choice((100, 2_000, 200_000))
    opening, closing = draw.choice((("[", "]"), ('{"a":', "}")))
    value = opening * depth + "1" + closing * depth
    return "rows.jsonl", f'{{"content": {value}, "teacher_response": "west"}}\n'.encode()


def _table(draw: random.Random) -> tuple[str, bytes]:
    kind = draw.random()
    columns: dict[str, Any] = {"content": ["face west"] * 4, "teacher_response": ["west"] * 4}
    if kind < 0.5:
        columns[draw.choice(COLUMNS)] = draw.choice(
            ([1, 2, 3, 4], [None] * 4, [b"\xff"] * 4, [[1.5]] * 4, [{"a": 1}] * 4, [[]] * 4)
        )
    elif kind < 0.7:
        length = draw.randint(0, 1)
        columns = {name: values[:length] for name, values in columns.items()}
    table, out = pa.table(columns), pa.BufferOutputStream()
    if draw.random() < 0.5:
        pq.write_table(table, out)
        return draw.choice(("rows.parquet", "rows.jsonl")), out.getvalue().to_pybytes()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return "rows.arrow", out.getvalue().to_pybytes()


def _noise(draw: random.Random) -> tuple[str, bytes]:
    name = draw.choice(
        ("rows.jsonl", "rows.json", "rows.parquet", "rows.arrow", "rows.txt", "rows")
    )
    return name, draw.choice((b"", b"\n", b"\0" * 100, draw.randbytes(draw.randint(1, 4000))))


KINDS: tuple[Callable[[random.Random], tuple[str, bytes]], ...] = (
    *(_json_lines, _json_lines, _json_array, _damaged, _damaged, _deep, _table, _noise),
)
