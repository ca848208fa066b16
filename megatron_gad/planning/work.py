"""What a step of each stage computes, in rows: ours, and the reference implementation's."""

from dataclasses import dataclass, replace

from megatron_gad.config.stage_section import StageWork


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


def reference_work(work: StageWork) -> StageWork:
    """Return the same step the way that the method's reference implementation computes it.

    Its public code scores with a pass of its own, computes the old log-probabilities although
    there is one update a batch, passes the teacher's response once for each sample, and repeats
    the supervised row of a prompt as often in the warm-up.
    """
    rows = work.num_prompts * work.group_size
    if work.is_game:
        return replace(
            work,
            num_samples=rows,
            student_forwards=2 * rows,
            student_trained=rows,
            discriminator_forwards=rows,
            discriminator_trained=2 * rows,
        )
    if work.discriminator_trained:
        return replace(
            work, student_trained=rows, discriminator_forwards=0, discriminator_trained=2 * rows
        )
    return work
