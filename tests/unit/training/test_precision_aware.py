"""Main weights and moments that Transformer Engine's Adam holds, in types of the user's choice.

That Adam needs a GPU; megatron-core meets its interface here, with torch behind it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.checkpoint import (
    Residents,
    load_model,
    save_checkpoint,
)
from megatron_gad.training.checkpoint_files import (
    iteration_folder,
)
from megatron_gad.training.optimizer import torch_optimizers
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import Trainer
from tests.tiny_training import make_student, parameters, student_batch, weights
from tests.unit.training.fused_adam import FusedAdam, stand_in

V = 97
LR = 1e-3
SHARDED = ParallelConfig(use_distributed_optimizer=True)


@pytest.fixture(autouse=True)
def fused() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        yield


@pytest.fixture
def compute() -> ComputeConfig:
    return ComputeConfig(
        bf16=True,
        use_precision_aware_optimizer=True,
    )


def make(folder: Path, place: Parallel, compute: ComputeConfig) -> Trainer:
    student = make_student(folder, place, SHARDED, compute, lr=LR, weight_decay=0.0)
    assert [type(part) for part in torch_optimizers(student.optimizer_to_write())] == [FusedAdam]
    return student


def states(student: Trainer) -> list[Tensor]:
    """Copies of the weights, and of all that the optimizer holds."""
    (optimizer,) = torch_optimizers(student.optimizer_to_write())
    held = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    values = [state[name] for state in held for name in sorted(state)]
    return [value.detach().clone() for value in (*parameters(student), *values)]


@pytest.mark.parametrize("num_steps", [0, 2])
def test_going_on_from_a_checkpoint_is_going_on(
    place: Parallel, qwen2: Path, tmp_path: Path, compute: ComputeConfig, num_steps: int
) -> None:
    batch = student_batch(V)
    student, resumed = (make(qwen2, place, compute) for _ in range(2))
    for _ in range(num_steps):
        student.train(batch, supervised_loss)
    save_checkpoint(tmp_path, 1, Residents({"student": student}), {}, place, keep_last=0)
    at_save = states(student)
    load_model(iteration_folder(tmp_path, 1) / "student", resumed)
    found = states(resumed)
    assert [value.dtype for value in found] == [value.dtype for value in at_save]
    assert all(map(torch.equal, found, at_save))
    for _ in range(2):
        expected = student.train(batch, supervised_loss).metrics
        assert resumed.train(batch, supervised_loss).metrics == expected
    assert all(map(torch.equal, states(resumed), states(student)))


def test_a_step_after_restored_or_loaded_weights_goes_on_from_them(
    place: Parallel, qwen2: Path, compute: ComputeConfig
) -> None:
    """A step of AdamW moves a weight by about the learning rate, and bf16 rounds by 2^-8 of it."""
    batch = student_batch(V)
    student = make(qwen2, place, compute)
    start, snapshot = weights(student), student.snapshot()
    for returns in (lambda: student.restore(snapshot), lambda: student.load_hf_weights(qwen2)):
        for _ in range(20):
            student.train(batch, supervised_loss)
        far = max(float((w - start[name]).abs().max()) for name, w in weights(student).items())
        assert far > 10 * LR
        returns()
        student.train(batch, supervised_loss)
        for name, value in weights(student).items():
            bound = 2 * LR + 2**-8 * start[name].abs()
            assert ((value - start[name]).abs() <= bound).all(), name
