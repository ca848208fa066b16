"""Student's folders whose files are cut, changed or missing, or hold values that no model has."""

import json
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

from megatron_gad.errors import RunStoppedError
from megatron_gad.stages.begin import begin_stage
from megatron_gad.storage import StorageError, telling_of_storage
from tests.e2e.tiny_run import ROOT, assets
from tests.fuzz.checkpoints import open_seqkd
from tests.fuzz.damage import damaged_bytes, damaged_json
from tests.fuzz.outcome import PASSED, problem_of

JSON_FILES = ("config.json", "config.json", "tokenizer.json", "tokenizer_config.json")


def problem(number: int, folder: Path) -> str:
    """Check one folder, and take a step from it if it passes; return what is wrong."""
    draw = random.Random(number)
    student = shutil.copytree(assets() / "student", folder / "student", dirs_exist_ok=True)
    done = [draw.choice(DAMAGES)(draw, student) for _ in range(draw.choice((1, 1, 2)))]
    flags = ["--save", str(folder / "run"), "--stages", "seqkd", "--student.path", str(student)]
    flags += ["--data.path", str(assets() / "train.jsonl"), "--data.eval-path", ""]
    recipe = str(ROOT / "examples/tiny/run.toml")
    found = problem_of([recipe, *flags, "--dry-run"], must_refuse=True)
    if found == PASSED:  # so that a run would begin
        found = _step(folder / "run", student)
    shutil.rmtree(student)
    shutil.rmtree(folder / "run", ignore_errors=True)
    return f"model folder {number}: {'; '.join(done)}\n{found}" if found else ""


def _step(save: Path, student: Path) -> str:
    """Take a step."""
    try:
        with telling_of_storage(save):
            run = open_seqkd(save, student)
            try:
                begin_stage(run).take_step(run)
            finally:
                run.close()
    except (ValueError, StorageError, RunStoppedError):
        return ""
    except BaseException as error:  # noqa: BLE001 - whatever gets out is what is looked for
        return "".join(traceback.format_exception(error)[-6:])
    return ""


def _change_json(draw: random.Random, student: Path) -> str:
    file = student / draw.choice(JSON_FILES)
    try:
        value, what = damaged_json(draw, json.loads(file.read_text()))
        file.write_text(json.dumps(value))
    except (OSError, ValueError):
        return "nothing"
    return f"{file.name}: {what}"


def _change_bytes(draw: random.Random, student: Path) -> str:
    file = draw.choice(sorted(path for path in student.iterdir() if path.is_file()))
    file.write_bytes(damaged_bytes(draw, file.read_bytes()))
    return f"{file.name} has other bytes"


def _take_away(draw: random.Random, student: Path) -> str:
    file = draw.choice(sorted(path for path in student.iterdir() if path.is_file()))
    file.unlink()
    if draw.random() < 0.3:
        file.mkdir()
    return f"{file.name} is gone"


DAMAGES: tuple[Callable[[random.Random, Path], str], ...] = (
    *(_change_json, _change_json, _change_json, _change_bytes, _change_bytes, _take_away),
)
