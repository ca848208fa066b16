"""What a run computes, in floating-point operations, from the tokens that it really had.

One multiplication and one addition count two. Padding, norms, softmax and the optimizer do not
count. A pass with gradients counts three passes without. Held-out losses are no part of training.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_gad.config.run import RunConfig
from megatron_gad.config.stage_section import StageSection
from megatron_gad.planning.shapes import ModelShape

TRAINED = 3  # passes
# Of the rows that the student reads, those with the teacher's response.
TEACHERS_SHARE = {"seqkd": 1.0, "preference": 0.5, "warmup": 1.0}


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt with its template, of the teacher's response and of a student's."""

    prompt: float
    teacher: float
    student: float


def row_flops(
    shape: ModelShape, prompt: float, response: float, is_scorer: bool, sharing: int = 1
) -> float:
    """Return the operations of one pass over a row, of which so many share a prompt.

    Causal attention counts the half of its square that is not masked.
    """
    whole = prompt + response
    shared = prompt * _token_flops(shape, prompt, is_scorer)
    return whole * _token_flops(shape, whole, is_scorer) - shared * (1 - 1 / sharing)


def _token_flops(shape: ModelShape, length: float, is_scorer: bool) -> float:
    attention = 2 * shape.num_layers * shape.num_heads * shape.head_dim * length
    return 2 * shape.multiplied_parameters(is_scorer) + attention


def step_flops(
    config: RunConfig,
    section: StageSection,
    shape: ModelShape,
    lengths: Lengths,
    chosen_share: float | None = None,
) -> float:
    """Return the operations of a step of a stage: student, reference, discriminator, sampling.

    A teacher model counts as one of the student's size.

    chosen_share: of the samples, those that ``best_of_n`` fits; None takes what the stage expects.
    """
    work = section.work(config.gad, config.discriminator.split_groups)
    student, teacher = (
        row_flops(shape, lengths.prompt, tokens, is_scorer=False)
        for tokens in (lengths.student, lengths.teacher)
    )
    judged, taught = (
        row_flops(shape, lengths.prompt, tokens, is_scorer=True)
        for tokens in (lengths.student, lengths.teacher)
    )
    share = TEACHERS_SHARE.get(section.name, 0.0)
    read = share * teacher + (1 - share) * student
    trained = work.student_trained
    if chosen_share is not None:
        trained = chosen_share * work.num_samples
    # A group is the teacher's response and those of the student.
    scored = (taught + work.group_size * judged) / (1 + work.group_size)
    size = max(1, work.group_size)
    drawn = row_flops(shape, lengths.prompt, lengths.student, is_scorer=False, sharing=size)
    return (
        (work.student_forwards + work.teacher_forwards + TRAINED * trained) * read
        + (work.discriminator_forwards + TRAINED * work.discriminator_trained) * scored
        + work.num_samples * drawn
    )


def run_flops(
    config: RunConfig, shape: ModelShape, lengths: Lengths, records: Iterable[Mapping[str, Any]]
) -> float:
    """Return the operations of the steps of a run, from the lines of its ``metrics.jsonl``.

    lengths: of the data set; each step's own take their place where the step knows them.
    """
    total = 0.0
    for record in records:
        own = Lengths(
            lengths.prompt,
            record.get("teacher/length_mean", lengths.teacher),
            record.get("response/length_mean", lengths.student),
        )
        section = getattr(config, record["stage"])
        total += step_flops(config, section, shape, own, record.get("response/chosen_share"))
    return total
