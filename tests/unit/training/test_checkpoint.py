"""Checkpoints on one rank. What other layouts make of them: test_training.py of distributed."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.discriminator import discriminator_loss
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models.layers import RMSNorm
from megatron_gad.training.checkpoint import (
    Residents,
    load_model,
    load_snapshot,
    save_checkpoint,
    undo_half_replacing,
)
from megatron_gad.training.checkpoint_files import (
    LATEST,
    STATE,
    iteration_folder,
    latest_iteration,
    read_state,
    whole_iterations,
)
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.reference import Reference
from megatron_gad.training.trainer import Trainer
from tests.tiny_training import (
    make_discriminator,
    make_student,
    pair_rows,
    student_batch,
    training_state,
    weights,
)

V = 97
POLICY = partial(policy_loss, options=PolicyOptions(kl_coef=0.1))
BRADLEY_TERRY = partial(discriminator_loss, kind="bradley_terry")


@dataclass
class Models:
    """What a run in its last stage trains with."""

    student: Trainer
    discriminator: Trainer
    reference: Reference

    def step(self) -> list[float]:
        """Train both once; returns what was measured."""
        batch = student_batch(V)
        batch = batch.with_ref_logprobs(self.reference.logprobs(batch, 0.8))
        judged = self.discriminator.train(pair_rows(V), BRADLEY_TERRY)
        learned = self.student.train(batch, POLICY, 0.8)
        return [*judged.metrics.values(), *learned.metrics.values()]

    def everything(self) -> list[Tensor]:
        """Copies of all weights, main weights and moments."""
        values = [tensor.clone() for tensor in self.reference.snapshot]
        return values + training_state(self.student) + training_state(self.discriminator)

    def residents(self) -> Residents:
        return Residents(
            {"student": self.student, "discriminator": self.discriminator},
            {"reference": (self.student, self.reference.snapshot)},
        )


def make_models(place: Parallel, folder: Path, compute: ComputeConfig) -> Models:
    student = make_student(folder, place, compute=compute, lr=1e-3)
    discriminator = make_discriminator(folder, place, compute=compute, lr=1e-3)
    return Models(student, discriminator, Reference(student, student.snapshot()))


def load_models(source: Path, place: Parallel, folder: Path, compute: ComputeConfig) -> Models:
    """As a new process would: models of the base weights, then what the checkpoint holds."""
    models = make_models(place, folder, compute)
    load_model(source / "student", models.student)
    load_model(source / "discriminator", models.discriminator)
    models.reference = Reference(
        models.student, load_snapshot(source / "reference", models.student)
    )
    return models


@pytest.mark.parametrize(
    "compute", [ComputeConfig(), ComputeConfig(bf16=True)], ids=["fp32", "bf16"]
)
def test_going_on_from_a_checkpoint_is_going_on(
    place: Parallel, qwen2_tied: Path, tmp_path: Path, compute: ComputeConfig
) -> None:
    models = make_models(place, qwen2_tied, compute)
    for _ in range(2):
        models.step()
    at_save = models.everything()
    save_checkpoint(tmp_path, 2, models.residents(), {"answer": 42}, place, keep_last=0)
    assert all(map(torch.equal, models.everything(), at_save))
    uninterrupted = [models.step() for _ in range(2)]

    assert latest_iteration(tmp_path) == 2
    assert read_state(tmp_path, 2) == {"answer": 42}
    resumed = load_models(iteration_folder(tmp_path, 2), place, qwen2_tied, compute)
    assert all(map(torch.equal, resumed.everything(), at_save))
    assert [resumed.step() for _ in range(2)] == uninterrupted
    assert all(map(torch.equal, resumed.everything(), models.everything()))


@pytest.mark.parametrize(
    "compute", [ComputeConfig(), ComputeConfig(bf16=True)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("trained_before", [False, True])
def test_a_model_that_took_no_step_yet_goes_on_too(
    place: Parallel, qwen2: Path, tmp_path: Path, compute: ComputeConfig, trained_before: bool
) -> None:
    batch = student_batch(V)
    student = make_student(qwen2, place, compute=compute)
    save_checkpoint(tmp_path, 1, Residents({"student": student}), {}, place, keep_last=0)
    loaded = make_student(qwen2, place, compute=compute)
    if trained_before:
        loaded.train(batch, POLICY)
    load_model(iteration_folder(tmp_path, 1) / "student", loaded)
    for _ in range(2):
        assert loaded.train(batch, POLICY).metrics == student.train(batch, POLICY).metrics
    expected = weights(student)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.hf_weights())


def test_moments_that_were_forgotten_stay_forgotten(
    place: Parallel, qwen2: Path, tmp_path: Path
) -> None:
    batch = student_batch(V)
    student = make_student(qwen2, place)
    student.train(batch, POLICY)
    student.begin_stage(0.01, total_steps=1, reset_optimizer=True)
    save_checkpoint(tmp_path, 1, Residents({"student": student}), {}, place, keep_last=0)
    loaded = make_student(qwen2, place)
    load_model(iteration_folder(tmp_path, 1) / "student", loaded)
    loaded.begin_stage(0.01, total_steps=1)
    student.train(batch, POLICY)
    loaded.train(batch, POLICY)
    expected = weights(student)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.hf_weights())


@pytest.mark.parametrize("distributed", [False, True])
def test_in_bf16_a_scorers_head_is_trained_and_kept_in_float32(
    place: Parallel, qwen2: Path, tmp_path: Path, distributed: bool
) -> None:
    """AdamW's first step moves every weight by the learning rate, here less than bf16 can show."""
    lr = 1e-5
    layout = ParallelConfig(use_distributed_optimizer=distributed)
    make = partial(make_discriminator, qwen2, place, layout, ComputeConfig(bf16=True), lr=lr)
    trained = make(weight_decay=0.0)
    drawn = weights(trained)["score.weight"]
    trained.train(pair_rows(V), BRADLEY_TERRY)
    head = weights(trained)["score.weight"]
    assert head.dtype == torch.float32
    torch.testing.assert_close((head - drawn).abs(), torch.full_like(head, lr), rtol=0.02, atol=0)
    save_checkpoint(tmp_path, 1, Residents({"discriminator": trained}), {}, place, keep_last=0)
    loaded = make(weight_decay=0.0)
    load_model(iteration_folder(tmp_path, 1) / "discriminator", loaded)
    assert torch.equal(weights(loaded)["score.weight"], head)
    for _ in range(2):
        found, expected = (each.train(pair_rows(V), BRADLEY_TERRY) for each in (loaded, trained))
        assert found.metrics == expected.metrics
    assert torch.equal(weights(loaded)["score.weight"], weights(trained)["score.weight"])


class TransformerEngineNorm(RMSNorm):
    """Keeps a state as the norms of Transformer Engine do, which saves nothing in it."""

    def get_extra_state(self) -> Tensor:
        """What is saved beside the weight."""
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take what was saved."""
        assert state.numel() == 0


@pytest.mark.parametrize("saves_states", [False, True])
def test_norms_of_either_kind_read_what_the_other_saved(
    place: Parallel, qwen3_moe: Path, tmp_path: Path, saves_states: bool
) -> None:
    """As after a conversion, whose layers are local ones."""
    saved, loaded = (make_student(qwen3_moe, place, compute=ComputeConfig()) for _ in range(2))
    named = (saved if saves_states else loaded).modules_to_read()[0].named_modules()
    fused = "input_layernorm"  # a part of the next layer in Transformer Engine
    norms = [norm for name, norm in named if isinstance(norm, RMSNorm) and fused not in name]
    assert len(norms) == 1 + 3 * len(saved.modules_to_read()[0].decoder.layers)
    for norm in norms:
        norm.__class__ = TransformerEngineNorm
    saved.train(student_batch(V), POLICY)
    residents = Residents({"student": saved}, {"reference": (saved, saved.snapshot())})
    save_checkpoint(tmp_path, 1, residents, {}, place, keep_last=0)
    folder = iteration_folder(tmp_path, 1)
    expected = weights(saved)
    load_model(folder / "student", loaded)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.hf_weights())
    assert all(map(torch.equal, load_snapshot(folder / "reference", loaded), saved.snapshot()))


@pytest.fixture(scope="module")
def resident(place: Parallel, qwen2: Path) -> Residents:
    """A model to write, where it does not matter which."""
    return Residents({"student": make_student(qwen2, place)})


def iterations(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_only_the_newest_are_kept(place: Parallel, tmp_path: Path, resident: Residents) -> None:
    for iteration in (1, 5, 20):
        save_checkpoint(tmp_path, iteration, resident, {}, place, keep_last=2)
    assert iterations(tmp_path) == ["iter_0000005", "iter_0000020"]
    assert latest_iteration(tmp_path) == 20


def test_a_half_written_checkpoint_is_ignored_and_cleared_away(
    place: Parallel, tmp_path: Path, resident: Residents
) -> None:
    """Also one that has everything but its name."""
    save_checkpoint(tmp_path, 1, resident, {"step": 1}, place, keep_last=2)
    draft = tmp_path / "iter_0000002.draft"
    draft.mkdir()
    (draft / STATE).write_text("{}")
    assert latest_iteration(tmp_path) == 1
    save_checkpoint(tmp_path, 3, resident, {"step": 3}, place, keep_last=2)
    assert iterations(tmp_path) == ["iter_0000001", "iter_0000003"]


def test_what_cannot_be_deleted_neither_ends_the_run_nor_looks_whole(
    place: Parallel,
    tmp_path: Path,
    resident: Residents,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on NFS, where a file that another process has open keeps its folder from going."""
    save_checkpoint(tmp_path, 1, resident, {}, place, keep_last=1)

    def rmdir(path: str, *_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", path)

    with monkeypatch.context() as refusing:
        refusing.setattr(os, "rmdir", rmdir)
        save_checkpoint(tmp_path, 2, resident, {}, place, keep_last=1)
    assert "iter_0000001 is deleted later: [Errno 39] Directory not empty" in caplog.text
    assert iterations(tmp_path) == ["iter_0000001.draft", "iter_0000002"]
    assert whole_iterations(tmp_path) == [2]
    save_checkpoint(tmp_path, 3, resident, {}, place, keep_last=2)
    assert iterations(tmp_path) == ["iter_0000002", "iter_0000003"]


def test_only_checkpoints_count_among_those_that_are_kept(
    place: Parallel, tmp_path: Path, resident: Residents
) -> None:
    """Not what a crash left of one that was replaced, nor copies with names of their own."""
    save_checkpoint(tmp_path, 1, resident, {}, place, keep_last=2)
    for name in ("iter_0000001.mine", "iter_0000002.mine"):
        shutil.copytree(tmp_path / "iter_0000001", tmp_path / name)
    save_checkpoint(tmp_path, 3, resident, {}, place, keep_last=2)
    kept = ["iter_0000001", "iter_0000001.mine", "iter_0000002.mine", "iter_0000003"]
    assert iterations(tmp_path) == kept


def test_what_a_crash_left_takes_no_room_beside_the_next_checkpoint(
    place: Parallel, tmp_path: Path, resident: Residents
) -> None:
    """Also where the disk is full again and the next one does not become whole."""
    save_checkpoint(tmp_path, 1, resident, {}, place, keep_last=1)
    for name in ("iter_0000001.old", "iter_0000002.draft"):
        shutil.copytree(tmp_path / "iter_0000001", tmp_path / name)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(tmp_path, 3, resident, {"no": {"json"}}, place, keep_last=1)
    assert iterations(tmp_path) == ["iter_0000001", "iter_0000003.draft"]


def test_a_run_that_was_set_back_keeps_what_it_writes(
    place: Parallel, tmp_path: Path, resident: Residents
) -> None:
    for iteration in (10, 20):
        save_checkpoint(tmp_path, iteration, resident, {}, place, keep_last=2)
    (tmp_path / LATEST).write_text("10\n")
    assert latest_iteration(tmp_path) == 10
    save_checkpoint(tmp_path, 15, resident, {}, place, keep_last=1)
    assert latest_iteration(tmp_path) == 15
    assert iterations(tmp_path) == ["iter_0000015", "iter_0000020"]


def test_a_checkpoint_of_the_same_iteration_is_replaced(
    place: Parallel, tmp_path: Path, resident: Residents
) -> None:
    for stage in (0, 1):
        save_checkpoint(tmp_path, 7, resident, {"stage": stage}, place, keep_last=1)
    assert read_state(tmp_path, 7) == {"stage": 1}
    assert iterations(tmp_path) == ["iter_0000007"]


def test_the_disk_holds_a_checkpoint_before_those_that_it_follows_go(
    place: Parallel, tmp_path: Path, resident: Residents, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, resident, {}, place, keep_last=1)
    synced: list[tuple[str, bool]] = []

    def fsync(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
        name = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)
        synced.append((name, (tmp_path / "iter_0000001").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save_checkpoint(tmp_path, 2, resident, {}, place, keep_last=1)
    assert iterations(tmp_path) == ["iter_0000002"]
    assert all(older_was_there for _, older_was_there in synced)
    names = [name for name, _ in synced]
    assert names[-3:] == [".", f"{LATEST}.draft", "."]
    written = {"iter_0000002.draft", f"iter_0000002.draft/{STATE}", "iter_0000002.draft/student"}
    student = tmp_path / "iter_0000002/student"
    written |= {f"iter_0000002.draft/student/{path.name}" for path in student.iterdir()}
    assert written <= set(names)


def test_a_checkpoint_cut_off_while_it_was_replaced_is_found_again(
    place: Parallel, tmp_path: Path, resident: Residents
) -> None:
    save_checkpoint(tmp_path, 7, resident, {"stage": 0}, place, keep_last=1)
    (tmp_path / "iter_0000007").rename(tmp_path / "iter_0000007.old")
    undo_half_replacing(tmp_path)
    assert latest_iteration(tmp_path) == 7
    assert read_state(tmp_path, 7) == {"stage": 0}
    shutil.copytree(tmp_path / "iter_0000007", tmp_path / "iter_0000007.old")
    undo_half_replacing(tmp_path)
    assert iterations(tmp_path) == ["iter_0000007", "iter_0000007.old"]


def test_without_a_marker_there_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "iter_0000004").mkdir()
    assert latest_iteration(tmp_path) is None


@pytest.mark.parametrize("text", ["4", "release", ""])
def test_a_marker_that_points_nowhere_is_named(tmp_path: Path, text: str) -> None:
    """The folder of iteration 4 is there, but not whole."""
    (tmp_path / "iter_0000004").mkdir()
    (tmp_path / LATEST).write_text(text)
    with pytest.raises(ValueError, match=rf"{LATEST} says '{text}'.*iter_\* folder that holds"):
        latest_iteration(tmp_path)
