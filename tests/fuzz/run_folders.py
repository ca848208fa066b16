"""Run directories whose files are cut, changed, missing, or hold other values than a run writes."""

import json
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_gad.reporting.page import build_report
from tests.fuzz.damage import damaged_bytes, damaged_json
from tests.unit.reporting.synthetic_run import write_results, write_run


def problem(number: int, folder: Path) -> str:
    """Try the report of one directory, made from its number; return what is wrong."""
    draw = random.Random(number)
    run = shutil.copytree(_whole_run(folder), folder / "run", dirs_exist_ok=True)
    done = [draw.choice(DAMAGES)(draw, run) for _ in range(draw.choice((1, 1, 2, 3)))]
    try:
        page = build_report(run).read_text()
        found = "" if page.rstrip().endswith("</html>") else f"half a page: {page[-200:]}"
    except (ValueError, OSError) as error:
        found = "" if str(run) in str(error) else f"the message names no path: {error!r}"
    except BaseException as error:  # noqa: BLE001 - whatever gets out is what is looked for
        found = "".join(traceback.format_exception(error)[-6:])
    shutil.rmtree(run)
    return f"run directory {number}: {'; '.join(done)}\n{found}" if found else ""


def _whole_run(folder: Path) -> Path:
    whole = folder / "whole"
    if not whole.exists():
        write_run(whole, steps=(3, 3, 3))
        write_results(whole)
    return whole


def _file(draw: random.Random, run: Path) -> Path:
    return draw.choice(sorted(path for path in run.rglob("*") if path.is_file()))


def _change_bytes(draw: random.Random, run: Path) -> str:
    file = _file(draw, run)
    file.write_bytes(damaged_bytes(draw, file.read_bytes()))
    return f"{file.name} has other bytes"


def _change_values(draw: random.Random, run: Path) -> str:
    """Give places in JSON values that no run writes."""
    file = draw.choice([*run.rglob("*.jsonl"), run / "results.json"])
    if not file.is_file():
        return "nothing"
    lines = file.read_text(errors="replace").splitlines() if file.suffix == ".jsonl" else [""]
    where = draw.randrange(len(lines) or 1)
    text = lines[where] if file.suffix == ".jsonl" and lines else file.read_text(errors="replace")
    try:
        value, what = damaged_json(draw, json.loads(text))
    except json.JSONDecodeError:
        return "nothing"
    changed = json.dumps(value)
    lines[where : where + 1] = [changed]
    file.write_text("\n".join(lines) + "\n")
    return f"{file.name} has {what}"


def _take_away(draw: random.Random, run: Path) -> str:
    file = _file(draw, run)
    file.unlink()
    if draw.random() < 0.5:
        file.mkdir()
    return f"{file.name} is gone"


def _add(draw: random.Random, run: Path) -> str:
    name = draw.choice(("samples/step_99999999999999999999.jsonl", "samples/step_0000001.jsonl"))
    row: dict[str, Any] = {"step": draw.choice((1, 10**30, -1, True)), "rollouts": None}
    (run / name).write_text(json.dumps(row) + "\n")
    return f"{name} holds {row}"


DAMAGES: tuple[Callable[[random.Random, Path], str], ...] = (
    *(_change_bytes, _change_values, _change_values, _change_values, _take_away, _add),
)
