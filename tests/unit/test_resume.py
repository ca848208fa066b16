"""Which checkpoint a run goes on from, and which it refuses."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from megatron_gad.resume import _stage_state, load_latest, save
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.stop_request import StopRequest
from megatron_gad.stages.begin import begin_stage
from megatron_gad.stages.seqkd import SeqkdStage
from megatron_gad.storage import StorageError
from megatron_gad.train import _run_stage
from megatron_gad.training.checkpoint_files import (
    LATEST,
)
from tests.stage_steps import health_of, take_step


def run_and_save(run: Run, num_steps: int) -> None:
    stage = begin_stage(run)
    for _ in range(num_steps):
        take_step(run, stage)
    save(run, stage)


def test_the_runs_own_checkpoint_comes_before_the_one_that_load_names(build, tmp_path) -> None:
    other, own = tmp_path / "other", tmp_path / "own"
    run_and_save(build(other, "--stages", "seqkd"), 1)
    started = build(own, "--stages", "seqkd", "--load", str(other))
    stage = load_latest(started)
    assert started.progress.iteration == 1
    started.progress.iteration = 7
    save(started, stage)
    again = build(own, "--stages", "seqkd", "--load", str(other))
    assert load_latest(again)
    assert again.progress.iteration == 7


def test_no_draft_of_a_checkpoint_is_written_through_a_link(build, tmp_path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_text("mine")
    save_folder = tmp_path / "run"
    run = build(save_folder, "--stages", "seqkd")
    (save_folder / "iter_0000001.draft").symlink_to(folder)
    (save_folder / f"{LATEST}.draft").symlink_to(file)
    run_and_save(run, 1)
    assert list(folder.iterdir()) == []
    assert file.read_text() == "mine"
    assert (save_folder / LATEST).read_text() == "1"
    assert load_latest(build(save_folder, "--stages", "seqkd"))


def test_a_folder_that_took_the_run_directorys_place_gets_no_checkpoint(build, tmp_path) -> None:
    run = build(tmp_path / "run", "--stages", "seqkd")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "other").rename(tmp_path / "run")
    with pytest.raises(StorageError, match="No such file or directory; bring it back"):
        run_and_save(run, 1)
    assert not list((tmp_path / "run").glob("iter_*"))


def test_stages_may_be_added_behind_those_that_were_begun(build, tmp_path) -> None:
    run_and_save(build(tmp_path, "--stages", "seqkd"), 1)
    assert load_latest(build(tmp_path, "--stages", "seqkd", "warmup", "adversarial"))
    with pytest.raises(ValueError, match=r"comes after the stages \['seqkd'\]"):
        load_latest(build(tmp_path, "--stages", "warmup", "adversarial"))


def test_kl_that_is_switched_on_inside_a_stage_is_refused_with_the_reason(build, tmp_path) -> None:
    run_and_save(build(tmp_path, "--stages", "adversarial", "--gad.kl-coef", "0"), 1)
    with pytest.raises(ValueError, match=r"gad\.kl_coef = 0\.001, but .* keep kl_coef = 0"):
        load_latest(build(tmp_path, "--stages", "adversarial"))


def test_other_data_are_refused(build, tmp_path, assets: Path) -> None:
    run_and_save(build(tmp_path, "--stages", "seqkd"), 1)
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join((assets / "train.jsonl").read_text().splitlines(True)[:40]))
    with pytest.raises(ValueError, match="num_rows = 64, this run has 40"):
        load_latest(
            build(
                tmp_path,
                *("--stages", "seqkd", "--data.path", str(fewer)),
                *("--override-config", "data.path"),
            )
        )


def test_a_checkpoint_cut_off_while_it_was_replaced_is_gone_on_from(build, tmp_path) -> None:
    run_and_save(build(tmp_path, "--stages", "seqkd"), 1)
    (tmp_path / "iter_0000001").rename(tmp_path / "iter_0000001.old")
    again = build(tmp_path, "--stages", "seqkd")
    assert load_latest(again)
    assert again.progress.iteration == 1


def test_checkpoints_without_a_marker_are_not_begun_over(build, tmp_path) -> None:
    run_and_save(build(tmp_path, "--stages", "seqkd"), 1)
    (tmp_path / LATEST).rename(tmp_path / "elsewhere")
    again = build(tmp_path, "--stages", "seqkd")
    with pytest.raises(ValueError, match=rf"iterations \[1\], but no {LATEST}; write the one"):
        load_latest(again)
    (tmp_path / LATEST).write_text("1")
    assert load_latest(again)


def test_the_best_weights_so_far_are_kept_over_a_resume(build, tmp_path) -> None:
    flags = ("--stages", "seqkd", "--seqkd.keep-best")
    run = build(tmp_path, *flags)
    stage = begin_stage(run)
    assert isinstance(stage, SeqkdStage)
    take_step(run, stage)
    best = run.student.snapshot()
    stage.best_weights = run.student.snapshot()
    take_step(run, stage)
    save(run, stage)
    again = build(tmp_path, *flags)
    resumed = load_latest(again)
    assert resumed is not None
    last = again.student.snapshot()
    resumed.finish(again)
    held = again.student.snapshot()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(held, best, strict=True))
    assert not all(torch.equal(ours, theirs) for ours, theirs in zip(held, last, strict=True))


def test_a_half_written_checkpoint_is_not_seen(build, tmp_path) -> None:
    run = build(tmp_path, "--stages", "seqkd")
    run_and_save(run, 1)
    shutil.copytree(tmp_path / "iter_0000001", tmp_path / "iter_0000002.draft")
    again = build(tmp_path, "--stages", "seqkd")
    assert load_latest(again)
    assert again.progress == dataclasses.replace(run.progress)


@pytest.mark.parametrize(
    ("name", "flags", "held", "reason"),
    [
        (
            "seqkd",
            ("--seqkd.patience", "2"),
            {"best_loss": 1.25, "num_evals_since_best": 2},
            "the held-out loss has not fallen below 1.2500 for 2 epochs",
        ),
        (
            "warmup",
            ("--warmup.stop-below", "0.6"),
            {"recent_losses": [0.4, 0.6] * 10},
            "the running discriminator loss is 0.500, below 0.6",
        ),
    ],
)
def test_a_criterion_met_in_the_step_of_a_stop_ends_the_stage(
    build, tmp_path, name: str, flags: tuple[str, ...], held: dict, reason: str
) -> None:
    flags = ("--stages", name, f"--{name}.steps", "1000", *flags)
    run = build(tmp_path, *flags)
    stage = begin_stage(run)
    vars(stage).update(held)
    run.progress = dataclasses.replace(run.progress, iteration=20, step_in_stage=20)
    save(run, stage)
    again = build(tmp_path, *flags)
    resumed = load_latest(again)
    assert resumed is not None
    assert _run_stage(again, resumed, StopRequest(), health_of(again)) == reason
    assert again.progress.iteration == 20


def test_what_a_checkpoint_lacks_of_its_stage_is_named() -> None:
    """Found by a checkpoint without a count, from which a run went on with a traceback."""
    with pytest.raises(ValueError, match=r"lacks 'num_evals_since_best' .* --ckpt-step"):
        _stage_state({"progress": {}, "stage": {"best_eval_loss": 0.5}})["num_evals_since_best"]
