"""A checkpoint that is written while the run goes on."""

import resource
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.manifest import changed_files, names_in, read_manifest
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.saving import saved_bytes
from megatron_gad.planning.shapes import shape_from_config
from megatron_gad.training.checkpoint import (
    Residents,
    begin_checkpoint,
    load_model,
    load_snapshot,
    save_checkpoint,
)
from megatron_gad.training.checkpoint_files import STATE, iteration_folder, latest_iteration
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import Trainer
from tests.memory import WRITER, NewNumbers
from tests.tiny_training import make_student, student_batch, training_state

V = 97


@pytest.fixture
def student(place: Parallel, qwen2_tied: Path) -> Trainer:
    """A student that took a step."""
    trained = make_student(qwen2_tied, place, lr=1e-2)
    trained.train(student_batch(V), supervised_loss)
    return trained


def copies(trainer: Trainer) -> list[Tensor]:
    return [tensor.clone() for tensor in training_state(trainer)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def test_it_holds_what_was_there_when_it_began_and_shows_once_it_is_whole(
    place: Parallel, student: Trainer, qwen2_tied: Path, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, 1, Residents({"student": student}), {}, place, keep_last=1)
    reference = student.snapshot()
    expected, before = [tensor.clone() for tensor in reference], copies(student)
    residents = Residents({"student": student}, {"reference": (student, reference)})
    unpublished = begin_checkpoint(tmp_path, 2, residents, {"step": 2}, place, keep_last=1)
    for _ in range(2):
        student.train(student_batch(V), supervised_loss)
    reference[0].zero_()
    assert not same(copies(student), before)
    while not unpublished.is_written(place):
        student.train(student_batch(V), supervised_loss)
    assert latest_iteration(tmp_path) == 1
    assert not iteration_folder(tmp_path, 2).exists()
    unpublished.publish(place)
    assert latest_iteration(tmp_path) == 2
    assert not iteration_folder(tmp_path, 1).exists()

    folder = iteration_folder(tmp_path, 2)
    loaded = make_student(qwen2_tied, place)
    load_model(folder / "student", loaded)
    assert same(copies(loaded), before)
    assert same(load_snapshot(folder / "reference", loaded), expected)
    written = read_manifest(folder)
    assert sorted(written) == names_in(folder) and STATE in written
    assert changed_files(folder, written, written) == []


def test_it_is_published_by_whoever_waits(place: Parallel, student: Trainer, tmp_path: Path):
    residents = Residents({"student": student})
    begin_checkpoint(tmp_path, 1, residents, {}, place, keep_last=0).publish(place)
    assert latest_iteration(tmp_path) == 1


def test_what_a_crash_leaves_of_it_is_cleared_away(
    place: Parallel, student: Trainer, tmp_path: Path
) -> None:
    """The disk is as after a kill between two steps, with all files there and no name."""
    residents = Residents({"student": student})
    save_checkpoint(tmp_path, 1, residents, {}, place, keep_last=1)
    unpublished = begin_checkpoint(tmp_path, 2, residents, {}, place, keep_last=1)
    unpublished.files.finish()
    assert latest_iteration(tmp_path) == 1
    save_checkpoint(tmp_path, 3, residents, {}, place, keep_last=1)
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == ["iter_0000003"]


def test_a_disk_that_takes_too_little_is_told_when_it_would_be_published(
    place: Parallel, student: Trainer, tmp_path: Path
) -> None:
    residents = Residents({"student": student})
    save_checkpoint(tmp_path, 1, residents, {}, place, keep_last=1)
    sizes = [file.stat().st_size for file in iteration_folder(tmp_path, 1).rglob("*.distcp")]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) - 1, hard))
    try:
        unpublished = begin_checkpoint(tmp_path, 2, residents, {}, place, keep_last=1)
        with pytest.raises(CheckpointException, match="File too large"):
            unpublished.publish(place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert latest_iteration(tmp_path) == 1
    assert not iteration_folder(tmp_path, 2).exists()
    shutil.rmtree(tmp_path / "iter_0000002.draft")


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_copies_take_what_the_planner_counts(
    place: Parallel, qwen2: Path, tmp_path: Path, bf16: bool, distributed: bool
) -> None:
    parallel = ParallelConfig(use_distributed_optimizer=distributed)
    student = make_student(qwen2, place, parallel, ComputeConfig(bf16=bf16))
    student.train(student_batch(V), supervised_loss)
    residents = Residents({"student": student})
    unpublished = begin_checkpoint(tmp_path, 1, residents, {}, place, keep_last=1)
    shape = shape_from_config(student.hf_config.to_dict())
    layout = Layout(distributed_optimizer=distributed)
    assert unpublished.files.host_bytes == saved_bytes(shape, layout, bf16, is_scorer=False)
    unpublished.publish(place)


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_save_makes_no_numbers_on_the_device(
    place: Parallel, qwen2: Path, tmp_path: Path, bf16: bool, distributed: bool
) -> None:
    """What Megatron's writer makes is on the host, also if the models are not."""
    parallel = ParallelConfig(use_distributed_optimizer=distributed)
    student = make_student(qwen2, place, parallel, ComputeConfig(bf16=bf16))
    student.train(student_batch(V), supervised_loss)
    with NewNumbers() as made:
        save_checkpoint(tmp_path, 1, Residents({"student": student}), {}, place, keep_last=1)
    shape = shape_from_config(student.hf_config.to_dict())
    layout = Layout(distributed_optimizer=distributed)
    planned = saved_bytes(shape, layout, bf16, is_scorer=False)
    assert made.num_bytes.pop(WRITER) <= planned
    assert made.num_bytes.total() < 0.01 * planned, made.num_bytes
