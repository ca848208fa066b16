"""What a step of each stage computes, in rows: ours, and the reference implementation's."""

from dataclasses import dataclass, replace
from typing import Literal

StageKind = Literal["seqkd", "warmup", "adversarial"]


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and responses: the mean, which costs time, and the cap, which needs memory.

    Raises:
        ValueError: a length is below 1, or a mean is above its cap.
    """

    prompt: int
    response: int
    max_prompt: int
    max_response: int

    def __post_init__(self) -> None:
        for kind in ("prompt", "response"):
            mean, cap = getattr(self, kind), getattr(self, f"max_{kind}")
            if not 1 <= mean <= cap:
                raise ValueError(
                    f"--{kind}-tokens {mean} is the mean length of a {kind}; it has to be at least "
                    f"1 and at most data.max_{kind}_tokens = {cap}"
                )

    @property
    def row(self) -> int:
        """Return the mean tokens of a row."""
        return self.prompt + self.response

    @property
    def max_row(self) -> int:
        """Return the most tokens of a row."""
        return self.max_prompt + self.max_response


@dataclass(frozen=True)
class StageWork:
    """One step of a stage. A row is a prompt with one response; counts are over all data ranks.

    num_prompts, group_size: of the batch; group_size 0 where nothing is sampled.
    num_samples: responses that the engine generates.
    student_forwards, student_trained, discriminator_forwards, discriminator_trained: rows that
        pass forward only, or forward and backward, through each model.
    steps: of the whole stage; None where only ``epochs`` are known.
    overlaps: the engine samples for the next step while this one trains.
    """

    kind: StageKind
    num_prompts: int
    group_size: int
    num_samples: float
    student_forwards: float
    student_trained: float
    discriminator_forwards: float
    discriminator_trained: float
    steps: int | None = None
    epochs: float = 1.0
    overlaps: bool = False

    def num_steps(self, num_data_prompts: int | None) -> float | None:
        """Return the steps of the stage, None where the size of the data set is needed."""
        if self.steps is not None:
            return self.steps
        if num_data_prompts is None:
            return None
        return max(1.0, self.epochs * num_data_prompts / self.num_prompts)


def reference_work(work: StageWork) -> StageWork:
    """Return the same step the way that the method's reference implementation computes it.

    Its public code scores with a pass of its own, computes the old log-probabilities although
    there is one update a batch, passes the teacher's response once for each sample, and repeats
    the supervised row of a prompt as often in the warm-up.
    """
    rows = work.num_prompts * work.group_size
    if work.kind == "seqkd":
        return work
    if work.kind == "warmup":
        return replace(
            work, student_trained=rows, discriminator_forwards=0, discriminator_trained=2 * rows
        )
    return replace(
        work,
        num_samples=rows,
        student_forwards=2 * rows,
        student_trained=rows,
        discriminator_forwards=rows,
        discriminator_trained=2 * rows,
    )
