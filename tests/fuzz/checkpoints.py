"""Checkpoints that are cut, flipped, mixed up or incomplete, or hold what no run saves."""

import json
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from megatron_gad.config.command_line import load_config
from megatron_gad.config.run import RunConfig
from megatron_gad.manifest import MANIFEST
from megatron_gad.resume import load_latest, save
from megatron_gad.runtime.run import Run
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.storage import LATEST, StorageError, telling_of_storage
from megatron_gad.training import parallel
from megatron_gad.training.checkpoint_files import STATE
from tests.e2e.tiny_run import ROOT, assets
from tests.fuzz.damage import damaged_bytes, damaged_json


def problem(number: int, folder: Path) -> str:
    """Try to go on from one damaged run directory; return what is wrong, empty if nothing is."""
    draw = random.Random(number)
    run_folder = shutil.copytree(_whole(folder), folder / "run")
    done = [draw.choice(DAMAGES)(draw, run_folder) for _ in range(draw.choice((1, 1, 2)))]
    try:
        with telling_of_storage(run_folder):
            found = _go_on(run_folder, folder)
    except (ValueError, StorageError) as error:
        found = "" if str(run_folder) in str(error) else f"the message names no path: {error!r}"
    except BaseException as error:  # noqa: BLE001 - whatever gets out is what is looked for
        found = "".join(traceback.format_exception(error)[-8:])
    shutil.rmtree(run_folder)
    return f"checkpoint {number}: {'; '.join(done)}\n{found}" if found else ""


def _go_on(run_folder: Path, folder: Path) -> str:
    """Load, and compare the weights with those that were saved."""
    run = open_seqkd(run_folder, assets() / "student")
    try:
        load_latest(run)
        iteration = run.progress.iteration
        if iteration not in (0, 1, 2):
            return f"the run is at iteration {iteration}"
        expected = torch.load(folder / f"weights_{iteration}.pt")
        found = dict(run.student.hf_weights())
        same = all(torch.equal(found[name], expected[name]) for name in expected)
        return "" if same else f"weights that were never saved pass for those of {iteration}"
    finally:
        run.close()


def open_seqkd(run_folder: Path, student: Path) -> Run:
    """Build a run of the first stage alone."""
    words = [str(ROOT / "examples/tiny/run.toml"), "--save", str(run_folder), "--stages", "seqkd"]
    words += ["--no-tensorboard", "--data.path", str(assets() / "train.jsonl")]
    words += ["--data.eval-path", "", "--student.path", str(student)]
    return open_run(load_config(words)[0], _place())


def leave_place() -> None:
    """Take the world of one apart again, if checkpoints were tried."""
    if _PLACES:
        _PLACES.clear()
        parallel.shut_down()


def _place() -> parallel.Parallel:
    if not _PLACES:
        _PLACES.append(parallel.initialize(RunConfig().parallel, 0))
    return _PLACES[0]


# A process has one world, which is made when it is needed.
_PLACES: list[parallel.Parallel] = []


def _whole(folder: Path) -> Path:
    """Return a run directory with whole checkpoints of the first and the second step."""
    whole = folder / "whole"
    if not whole.exists():
        run = open_seqkd(whole, assets() / "student")
        torch.save(dict(run.student.hf_weights()), folder / "weights_0.pt")
        stage = begin_stage(run)
        for iteration in (1, 2):
            stage.take_step(run)
            save(run, stage)
            torch.save(dict(run.student.hf_weights()), folder / f"weights_{iteration}.pt")
        run.close()
    return whole


def _file(draw: random.Random, run: Path) -> Path:
    pattern = draw.choice(("iter_0000002/**/*", "iter_0000002/**/*", "iter_0000001/**/*", "*"))
    return draw.choice(sorted(p for p in run.glob(pattern) if p.is_file()) or [run / LATEST])


def _change_bytes(draw: random.Random, run: Path) -> str:
    file = _file(draw, run)
    if file.is_file():
        file.write_bytes(damaged_bytes(draw, file.read_bytes()))
    return f"{file.relative_to(run)} has other bytes"


def _take_away(draw: random.Random, run: Path) -> str:
    file = _file(draw, run)
    file.unlink(missing_ok=True)
    if draw.random() < 0.3:
        file.mkdir(parents=True)
    return f"{file.relative_to(run)} is gone"


def _change_state(draw: random.Random, run: Path) -> str:
    """Give the run state of a checkpoint without digests, as of an older version, odd values."""
    newest = run / "iter_0000002"
    try:
        value, what = damaged_json(draw, json.loads((newest / STATE).read_text()))
        (newest / STATE).write_text(json.dumps(value))
        if draw.random() < 0.7:
            (newest / MANIFEST).unlink()
    except (OSError, ValueError):
        return "nothing"
    return f"{STATE}: {what}"


def _mix_up(draw: random.Random, run: Path) -> str:
    """Swap two files, or both checkpoints."""
    first, second = (run / "iter_0000001", run / "iter_0000002")
    if draw.random() < 0.6:
        names = ("student/common.pt", "student/__0_0.distcp", "student/.metadata", STATE)
        name = draw.choice(names)
        first, second = first / name, second / name
    if not (first.exists() and second.exists()):
        return "nothing"
    between = run / "between"
    first.rename(between)
    second.rename(first)
    between.rename(second)
    return f"{first.name} and {second.name} of both checkpoints are swapped"


def _change_marker(draw: random.Random, run: Path) -> str:
    text = draw.choice(("", "1", "3", "-1", "two", "1e9", "9" * 50, "\u0662", "2\n\n", "\0"))
    (run / LATEST).write_text(text)
    return f"the marker says {text!r}"


DAMAGES: tuple[Callable[[random.Random, Path], str], ...] = (
    *(_change_bytes, _change_bytes, _change_bytes, _take_away, _take_away),
    *(_change_state, _change_state, _mix_up, _change_marker),
)
