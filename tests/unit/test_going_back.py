"""A damaged newest checkpoint: what is said, what is kept, and where the run goes on."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_gad.errors import RunStoppedError
from megatron_gad.manifest import MANIFEST
from megatron_gad.models.hf_folder import save_hf_folder
from megatron_gad.resume import finish_saving, load_latest, save
from megatron_gad.runtime.run import Run
from megatron_gad.stages.begin import begin_stage
from megatron_gad.training.checkpoint_files import LATEST, STATE
from tests.stage_steps import take_step

NEWEST = "iter_0000002"
Build = Callable[..., Run]


@pytest.fixture(scope="module")
def build(build) -> Build:
    """A function that builds a warm-up in a folder."""
    return lambda folder, *flags: build(folder, "--stages", "warmup", *flags)


@pytest.fixture(scope="module")
def whole(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with two whole checkpoints, of the first step and of the second."""
    folder = tmp_path_factory.mktemp("whole")
    run = build(folder)
    stage = begin_stage(run)
    for _ in range(2):
        take_step(run, stage)
        save(run, stage)
    run.close()
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def change_state(folder: Path, *path: str, value: Any, keeps_manifest: bool = False) -> None:
    """Write another value into a run state, as of a version that wrote no digests."""
    file = folder / STATE
    state = part = json.loads(file.read_text())
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file.write_text(json.dumps(state))
    if not keeps_manifest:
        (folder / MANIFEST).unlink()


@pytest.mark.parametrize(
    "name",
    [
        *("student/__0_0.distcp", "discriminator/__0_1.distcp", "student/.metadata"),
        *("student/common.pt", "discriminator/metadata.json", STATE, MANIFEST),
    ],
)
def test_one_flipped_bit_sends_the_run_back_with_a_loud_line(
    build: Build, folder: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    flip(folder / NEWEST / name)
    broken = (folder / NEWEST / name).read_bytes()
    run = build(folder)
    with caplog.at_level(logging.ERROR):
        assert load_latest(run) is not None
    run.close()
    assert run.progress.iteration == 1
    assert (folder / LATEST).read_text() == "1"
    (line,) = [record.getMessage() for record in caplog.records if "DAMAGED" in record.message]
    assert name.rpartition("/")[2] in line
    assert f"kept as {folder / NEWEST}.damaged" in line
    assert "goes back to iteration 1: 1 step(s) are lost" in line
    assert not (folder / NEWEST).exists()
    assert (folder / f"{NEWEST}.damaged" / name).read_bytes() == broken


@pytest.mark.parametrize("damage", ["gone", "no state", "cut state", "empty weights"])
def test_what_is_lost_sends_the_run_back_too(build: Build, folder: Path, damage: str) -> None:
    newest = folder / NEWEST
    if damage == "gone":
        shutil.rmtree(newest)
    elif damage == "no state":
        (newest / STATE).unlink()
    elif damage == "cut state":
        (newest / STATE).write_text((newest / STATE).read_text()[:-1])
    else:
        (newest / "student/__0_0.distcp").write_bytes(b"")
    run = build(folder)
    assert load_latest(run) is not None
    assert run.progress.iteration == 1
    run.close()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("progress", "iteration"), -1),
        (("progress", "iteration"), 7),
        (("progress", "step_in_stage"), -5),
        (("progress", "step_in_stage"), 10**9),
        (("progress", "stage_index"), 5),
        (("progress", "weights_version"), 1.5),
        (("order", "position"), 10**9),
        (("order", "put_off"), [64]),
        (("extra_order", "epoch"), -1),
        (("schedule_steps", "student"), None),
        (("schedule_steps",), {}),
        (("stages",), "warmup"),
        (("progress",), []),
    ],
)
def test_a_run_state_that_cannot_be_is_damage(build: Build, folder: Path, path, value) -> None:
    change_state(folder / NEWEST, *path, value=value)
    run = build(folder)
    assert load_latest(run) is not None
    assert run.progress.iteration == 1
    run.close()


def test_a_second_damaged_one_is_passed_over_as_well_and_names_are_not_reused(
    build: Build, folder: Path
) -> None:
    shutil.copytree(folder / NEWEST, folder / "iter_0000003")
    (folder / f"{NEWEST}.damaged").mkdir()
    (folder / LATEST).write_text("3")
    flip(folder / NEWEST / "student/__0_0.distcp")
    run = build(folder)
    assert load_latest(run) is not None  # the third is of another iteration than its name says
    assert run.progress.iteration == 1
    run.close()
    kept = sorted(path.name for path in folder.glob("iter_*"))
    assert kept == [
        *("iter_0000001", f"{NEWEST}.damaged", f"{NEWEST}.damaged2", "iter_0000003.damaged")
    ]


def test_the_only_checkpoint_is_refused_and_stays(build: Build, folder: Path) -> None:
    shutil.rmtree(folder / "iter_0000001")
    flip(folder / NEWEST / "student/__0_0.distcp")
    run = build(folder)
    with pytest.raises(ValueError, match=r"holds student/__0_0.distcp with other bytes .* anew"):
        load_latest(run)
    run.close()
    assert (folder / NEWEST).is_dir()
    assert (folder / LATEST).read_text() == "2"


def test_another_runs_checkpoint_is_refused_and_stays(
    build: Build, folder: Path, tmp_path: Path
) -> None:
    flip(folder / NEWEST / "student/__0_0.distcp")
    run = build(tmp_path / "new", "--load", str(folder))
    with pytest.raises(ValueError, match=rf"with other bytes .* write 1 into {folder / LATEST}"):
        load_latest(run)
    run.close()
    assert (folder / NEWEST).is_dir()


def test_digests_are_not_compared_where_that_is_switched_off(build: Build, folder: Path) -> None:
    change_state(folder / NEWEST, "progress", "consumed_samples", value=4321, keeps_manifest=True)
    sizes = json.loads((folder / NEWEST / MANIFEST).read_text())
    sizes[STATE]["bytes"] = (folder / NEWEST / STATE).stat().st_size
    (folder / NEWEST / MANIFEST).write_text(json.dumps(sizes))
    run = build(folder, "--no-verify-checkpoint")
    assert load_latest(run) is not None
    assert (run.progress.iteration, run.progress.consumed_samples) == (2, 4321)
    run.close()


def test_swapped_models_are_told_by_what_they_hold(build: Build, folder: Path) -> None:
    newest = folder / NEWEST
    (newest / MANIFEST).unlink()
    for old, new in (("student", "x"), ("discriminator", "student"), ("x", "discriminator")):
        (newest / old).rename(newest / new)
    run = build(folder)
    with pytest.raises(ValueError, match=r"student holds the discriminator, not the student"):
        load_latest(run)
    run.close()


def test_other_texts_in_as_many_rows_are_refused(
    build: Build, folder: Path, assets: Path, tmp_path: Path
) -> None:
    rows = (assets / "train.jsonl").read_text().splitlines(True)
    data = tmp_path / "train.jsonl"
    data.write_text("".join([rows[1], *rows[1:]]))
    change_state(folder / NEWEST, "settings", "data.path", value=str(data))
    run = build(folder, "--data.path", str(data))
    with pytest.raises(ValueError, match=r"data\.path = .* holds other texts .*--override-config"):
        load_latest(run)
    run.close()
    run = build(folder, "--data.path", str(data), "--override-config", "data.path")
    assert load_latest(run) is not None
    run.close()


@pytest.mark.parametrize("broken", ["student", "discriminator", "moments", "too large"])
def test_broken_weights_are_never_published(build: Build, folder: Path, broken: str) -> None:
    run = build(folder)
    stage = load_latest(run)
    assert stage is not None
    take_step(run, stage)
    name = "student" if broken in ("student", "too large") else "discriminator"
    trainer = run.student if name == "student" else run.discriminator
    tensors = list(trainer.modules_to_write()[0].parameters())
    if broken == "moments":
        trainer.optimizer_to_write()
        tensors = [each for each in trainer.memory.optimizer_states() if each.ndim > 0]
    with torch.no_grad():
        tensors[-1].view(-1)[-1] = float({"student": "inf", "too large": "1e30"}.get(broken, "nan"))
    words = rf"states of the {name} are not finite, .*{NEWEST}, whose weights were found finite"
    with pytest.raises(RunStoppedError, match=words):
        save(run, stage)
    run.close()
    assert sorted(path.name for path in folder.glob("iter_*")) == ["iter_0000001", NEWEST]
    assert (folder / LATEST).read_text() == "2"


def test_an_exported_model_that_changed_is_refused(
    build: Build, assets: Path, tmp_path: Path
) -> None:
    run = build(tmp_path / "run")
    exported = tmp_path / "exported"
    weights = run.student.hf_weights()
    save_hf_folder(weights, run.student.hf_config, assets / "student", exported)
    run.close()
    config = exported / "config.json"
    config.write_text(config.read_text() + "\n")  # as anyone may edit it
    build(tmp_path / "run", "--student.path", str(exported)).close()
    flip(exported / "model.safetensors")
    with pytest.raises(ValueError, match=r"student.path = .*holds model.safetensors with other b"):
        build(tmp_path / "run", "--student.path", str(exported))


def test_a_checkpoint_in_the_background_is_gone_on_from_like_any_other(
    build: Build, folder: Path
) -> None:
    """And the next one waits for it."""
    run = build(folder)
    stage = load_latest(run)
    assert stage is not None
    take_step(run, stage)
    save(run, stage, in_background=True)
    assert (folder / LATEST).read_text() == "2"
    expected = take_step(run, stage).metrics
    save(run, stage, in_background=True)
    assert (folder / LATEST).read_text() == "3"
    finish_saving(run)
    assert (folder / LATEST).read_text() == "4"
    run.close()
    (folder / LATEST).write_text("3")
    again = build(folder)
    resumed = load_latest(again)
    assert resumed is not None
    ours = take_step(again, resumed).metrics
    for key in ("discriminator/loss", "discriminator/grad_norm"):
        assert ours[key] == expected[key]
    again.close()
