"""What test_training.py trains on one rank, and its worker on four at every layout."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_gad.algorithms.divergence import divergence_loss
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.algorithms.preference import preference_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.stages.discriminator_step import judge
from megatron_gad.training.forward_backward import StepOutput
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.teacher import Teacher
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Batch, PairBatch
from tests.distributed.covering import covering
from tests.kernel_by_hand import gather_keys
from tests.tiny_training import (
    GROUP_SIZE,
    PAIR_ROWS,
    gradients,
    make_discriminator,
    make_student,
    pair_rows,
    rows_of,
    student_batch,
    weights,
    with_copies,
    with_equal_prompts,
)

VOCAB_SIZE = 97
POLICY = PolicyOptions(kl_coef=0.1)
# Rows two by two, of which one pair has no response token and one data rank of four nothing else.
# Their response tokens are more than one chunk.
TWO_ROWS = ComputeConfig(micro_batch_size=2, logprob_chunk_size=3)
OPTIMIZER = {"lr": 1e-3, "clip_grad": 0.2, "weight_decay": 0.1}

# What is left of the four ranks is data parallel.
PP2_VPP2 = ParallelConfig(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
PP2 = ParallelConfig(pipeline_model_parallel_size=2)
CP2 = ParallelConfig(context_parallel_size=2)
TP2 = ParallelConfig(tensor_model_parallel_size=2)
TP2_SP = replace(TP2, sequence_parallel=True)
LAYOUTS = {
    "dp4": ParallelConfig(),
    "tp4": ParallelConfig(tensor_model_parallel_size=4),
    "tp4-sp": ParallelConfig(tensor_model_parallel_size=4, sequence_parallel=True),
    "pp4": ParallelConfig(pipeline_model_parallel_size=4),
    "pp4-vpp2": replace(PP2_VPP2, pipeline_model_parallel_size=4),
    "cp4": ParallelConfig(context_parallel_size=4),
    "tp2-dp2": TP2,
    "tp2-sp-dp2": TP2_SP,
    "pp2-dp2": PP2,
    "pp2-vpp2-dp2": PP2_VPP2,
    "cp2-dp2": CP2,
    "tp2-pp2": replace(TP2, pipeline_model_parallel_size=2),
    "tp2-sp-pp2": replace(TP2_SP, pipeline_model_parallel_size=2),
    "tp2-pp2-vpp2": replace(PP2_VPP2, tensor_model_parallel_size=2),
    "tp2-sp-pp2-vpp2": replace(PP2_VPP2, tensor_model_parallel_size=2, sequence_parallel=True),
    "tp2-cp2": replace(TP2, context_parallel_size=2),
    "tp2-sp-cp2": replace(TP2_SP, context_parallel_size=2),
    "pp2-cp2": replace(PP2, context_parallel_size=2),
    "pp2-vpp2-cp2": replace(PP2_VPP2, context_parallel_size=2),
}
# With copies of the weights, over which the distributed optimizer shares its states out.
LAYOUTS |= {
    f"{name}-distributed": replace(layout, use_distributed_optimizer=True)
    for name, layout in LAYOUTS.items()
    if layout.tensor_model_parallel_size * layout.pipeline_model_parallel_size < 4
}
PACKED = ("tp2-sp-pp2-vpp2", "tp2-sp-dp2", "dp4-distributed")
LAYOUTS |= {f"{name}-packed": LAYOUTS[name] for name in PACKED}
# Some of these by name, since tests look at them.
COVERING = covering(
    LAYOUTS,
    wanted=(
        *("dp4", "tp2-dp2", "tp2-sp-pp2", "tp4-sp", "pp2-dp2", "pp2-cp2", "pp4", "cp2-dp2"),
        *("dp4-distributed", "pp2-vpp2-dp2-distributed", "tp2-sp-pp2-vpp2-packed"),
        "tp2-sp-dp2-packed",
    ),
)
# Packed, with an attention kernel that takes every sequence's keys for itself.
GATHERED = {f"{name}-gathered": LAYOUTS[name] for name in ("tp2-sp-dp2", "pp2-dp2", "tp2-sp-pp2")}
LAYOUTS |= GATHERED
COVERING += tuple(GATHERED)

# Where a checkpoint is saved, and where else it is loaded.
RESUMED = {
    "tp2-sp-pp2": ("dp4", "pp2-vpp2-cp2"),
    "pp2-dp2-distributed": (
        *("tp2-sp-dp2-distributed", "cp4-distributed", "pp2-vpp2-cp2-distributed"),
    ),
    # A scorer's head is float32 there, so that its stage has two types of weights.
    "tp2-sp-pp2-bf16": ("dp4-bf16",),
    "pp2-dp2-distributed-bf16": ("dp4-distributed-bf16", "tp2-sp-dp2-distributed-bf16"),
}
BF16 = "-bf16"


def compute_of(layout: str) -> ComputeConfig:
    """How a layout of the table computes."""
    is_packed = layout.endswith(("-packed", "-gathered"))
    return replace(TWO_ROWS, pack_sequences=is_packed, bf16=layout.endswith(BF16))


@dataclass(frozen=True)
class Case:
    """One model with a way to train it.

    folder: name of the Hugging Face folder.
    make: builds the trainer.
    batch: makes the whole batch of all data ranks.
    step: trains on a data rank's part of it; takes the teacher's folder too, if there is one.
    teacher: name of its folder.
    """

    folder: str
    make: Callable[..., Trainer]
    batch: Callable[[], Batch | PairBatch]
    step: Callable[..., StepOutput]
    teacher: str = ""


def supervised_step(trainer: Trainer, batch: Batch) -> StepOutput:
    """Learn from given responses."""
    return trainer.train(batch, supervised_loss)


def policy_step(trainer: Trainer, batch: Batch) -> StepOutput:
    """Learn from rewards."""
    return trainer.train(batch, partial(policy_loss, options=POLICY), temperature=0.8)


def taught_step(trainer: Trainer, batch: Batch, folder: Path) -> StepOutput:
    """Move to the distribution of a frozen teacher."""
    teacher = Teacher(folder, trainer)
    batch, states = teacher.states(batch)
    taught = teacher.taught(states, "jensen_shannon")
    return trainer.train(batch, divergence_loss, temperature=0.8, taught=taught)


def preference_step(trainer: Trainer, batch: Batch) -> StepOutput:
    """Prefer the first response of every two."""
    return trainer.train(batch, partial(preference_loss, kind="dpo", beta=0.3))


def skipped_and_policy_step(trainer: Trainer, batch: Batch) -> StepOutput:
    """Meet an advantage that is not a number on the first data rank alone, then learn."""
    assert batch.advantages is not None
    advantages = batch.advantages.clone()
    if trainer.parallel.data_rank == 0:
        advantages[0] = float("nan")
    skipped = policy_step(trainer, replace(batch, advantages=advantages))
    assert all(trainer.parallel.gather_over_world(skipped.is_skipped))
    return policy_step(trainer, batch)


def four_groups() -> PairBatch:
    """One group for each of four data ranks; two of three rollouts train.

    They have 2, 3, 4 and 3 distinct texts: three equal rollouts; one that equals the teacher's; all
    different; an untrained one that equals a trained one.
    """
    pairs = pair_rows(VOCAB_SIZE, num_trained=2, rows=PAIR_ROWS * 2)
    return with_copies(pairs, {2: 1, 3: 1, 6: 4, 15: 14})


def pairs_of_rows() -> Batch:
    """Two responses to a prompt, for each of four data ranks; of one prompt one is empty."""
    rows = ((3, 4), (3, 1), (2, 0), (2, 3), (6, 5), (6, 2), (7, 4), (7, 8))
    return with_equal_prompts(student_batch(VOCAB_SIZE, rows), 2)


def four_groups_with_their_prompts() -> PairBatch:
    """The four groups, each with one prompt."""
    return with_equal_prompts(four_groups(), 1 + GROUP_SIZE)


STUDENT = partial(student_batch, VOCAB_SIZE)
CASES = {
    "supervised-llama": Case("llama", make_student, STUDENT, supervised_step),
    "policy-tied": Case("qwen2-tied", make_student, STUDENT, policy_step),
    "bradley-terry": Case(
        "qwen2-tied",
        make_discriminator,
        four_groups,
        partial(judge, kind="bradley_terry", split_groups=False),
    ),
    "cross-entropy-split": Case(
        "qwen2",
        partial(make_discriminator, score="sum"),
        four_groups,
        partial(judge, kind="cross_entropy", split_groups=True),
    ),
}
SHALLOW = tuple(CASES)
# Of which a packed layout reads every prompt once, and one rank with padded rows once a response.
SHARED = {
    "policy-shared": replace(CASES["policy-tied"], batch=pairs_of_rows),
    "bradley-terry-shared": replace(CASES["bradley-terry"], batch=four_groups_with_their_prompts),
}
CASES |= SHARED
# With a layer for each of eight chunks.
DEEP = {
    f"{name}-deep": replace(CASES[name], folder="qwen2-tied-deep")
    for name in ("policy-tied", "bradley-terry")
}
CASES |= DEEP
# The norms of query and key heads are on every tensor parallel rank, each of which has other heads:
# their gradients have to be summed, with and without sequence parallelism.
CASES["policy-qwen3"] = Case("qwen3", make_student, STUDENT, policy_step)
CASES["policy-after-skipped"] = replace(CASES["policy-tied"], step=skipped_and_policy_step)
# A teacher of another width with more rows in its vocabulary, which padding for tensor parallelism
# shifts against the student's.
CASES["divergence"] = Case("llama", make_student, STUDENT, taught_step, teacher="teacher")
CASES["preference"] = Case(
    "qwen2", make_student, lambda: replace(pairs_of_rows(), rows_per_unit=2), preference_step
)
FURTHER = ("tp2-sp-pp2", "tp4-sp", "pp2-cp2", "pp2-vpp2-dp2-distributed", "tp2-sp-pp2-vpp2-packed")
SKIPPING = ("tp2-dp2", "tp2-sp-pp2", "cp2-dp2", "pp2-vpp2-dp2-distributed", "dp4-distributed")
NORMED = ("tp2-dp2", "tp4", "tp4-sp", "tp2-sp-pp2", "tp2-cp2", "tp2-dp2-distributed")


def cases_of(layout: str) -> tuple[str, ...]:
    """Which cases run where: all at every layout, two again with another optimizer or packed.

    Those of another depth, with norms of heads, after a skipped step or of further stages run where
    that makes a difference. Where keys are gathered, only those with shared prompts run.
    """
    if layout.startswith("pp4-vpp2"):
        return tuple(DEEP)
    if layout in GATHERED:
        return tuple(SHARED)
    is_variant = layout.endswith(("-distributed", "-packed"))
    cases = ("policy-tied", "cross-entropy-split") if is_variant else SHALLOW
    cases += tuple(SHARED) * layout.endswith("-packed")
    cases += ("policy-qwen3",) * (layout in NORMED)
    cases += ("divergence", "preference") * (layout in FURTHER)
    return cases + ("policy-after-skipped",) * (layout in SKIPPING)


@dataclass(frozen=True)
class Trained:
    """What a step left behind. token_values: of a discriminator, from before it."""

    metrics: dict[str, float]
    rows: list[Tensor]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    token_values: list[Tensor] = field(default_factory=list[Tensor])


def run_case(name: str, folder: Path, layout_name: str, place: Parallel) -> Trained:
    """Train a case of the table at a layout of the table, or on one rank."""
    case, layout = CASES[name], LAYOUTS.get(layout_name, ParallelConfig())
    if layout_name not in GATHERED:
        return train_case(case, folder, layout, place, compute_of(layout_name))
    masks: list[list[str]] = []

    def make(*arguments: Any, **options: Any) -> Trainer:
        trainer = case.make(*arguments, **options)
        masks.extend(gather_keys(trainer))
        return trainer

    gathering = replace(case, make=make)
    trained = train_case(gathering, folder, layout, place, compute_of(layout_name))
    assert masks and all("padding_causal_bottom_right" in of_layer for of_layer in masks)
    return trained


def train_case(
    case: Case,
    folder: Path,
    layout: ParallelConfig,
    place: Parallel,
    compute: ComputeConfig = TWO_ROWS,
) -> Trained:
    """Take one step; every rank gets the whole result."""
    trainer = case.make(folder / case.folder, place, layout, compute, **OPTIMIZER)
    part = share_of(case.batch(), place)
    is_scorer = isinstance(part, PairBatch)
    token_values = place.gather_over_data(trainer.token_values(part)) if is_scorer else []
    output = case.step(trainer, part, *([folder / case.teacher] if case.teacher else []))
    rows = place.gather_over_data(output.rows)
    return Trained(output.metrics, rows, gradients(trainer), weights(trainer), token_values)


def share_of(batch: Any, place: Parallel) -> Any:
    """This data rank's contiguous part of the rows."""
    rows = place.share(list(range(len(batch.lengths))))
    return rows_of(batch, slice(rows[0], rows[-1] + 1))
