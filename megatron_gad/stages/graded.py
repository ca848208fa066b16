"""How good the student's greedy answers are by others than the discriminator."""

from collections.abc import Sequence

from megatron_gad.runtime.run import Run
from megatron_gad.types import Group, Metrics


def instruction_metrics(run: Run, groups: Sequence[Group]) -> Metrics:
    """Return the shares of instructions that are followed, strict and loose. All ranks call it.

    groups: greedy answers to this data rank's share of the instructions.
    """
    if not run.data.instructions:
        return {}
    # What only runs with instructions need, and what the extra [evaluate] installs.
    from megatron_gad.evaluation.instructions.accuracy import (  # noqa: PLC0415
        instruction_accuracy,
    )

    asked = [run.data.instructions[group.prompt.index] for group in groups]
    answers = [run.codec.visible(group.rollouts[0].text) for group in groups]
    found = instruction_accuracy(asked, answers)
    count = float(len(groups))
    sums = {
        "evaluation/instructions_strict": (float(sum(found.each_strict)), count),
        "evaluation/instructions_loose": (float(sum(found.each_loose)), count),
    }
    return run.parallel.mean_over_data(sums)
