"""How good the student's greedy answers are by others than the discriminator."""

import logging
from collections.abc import Sequence
from itertools import chain

from megatron_gad.errors import only_warns
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.run_folder import ask_first_rank
from megatron_gad.types import Group, Metrics

VERDICTS_FILE = "judge.jsonl"
# Of the watchdog's patience with a phase, and where that has no end.
JUDGING_SHARE, JUDGING_S = 0.5, 600.0

logger = logging.getLogger(__name__)


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


def judge_metrics(run: Run, groups: Sequence[Group]) -> Metrics:
    """Return what a judge says of the greedy answers beside the teacher's. All ranks call it.

    One rank asks, for half as long as the watchdog allows at most. Nothing that fails there ends
    the run: the numbers are missing, and a warning says why.

    groups: greedy answers to this data rank's share of the held-out prompts.
    """
    if not run.config.evaluation.judge_url:
        return {}
    shares = run.parallel.gather_over_data([*groups])
    return ask_first_rank(run.parallel, lambda: _ask(run, [*chain.from_iterable(shares)]))


def _ask(run: Run, groups: Sequence[Group]) -> Metrics:
    failed = f"the judge gives no number of step {run.progress.iteration}, and the run goes on"
    with only_warns(logger, failed):
        # The client of endpoints takes a second to import.
        from megatron_gad.evaluation.judge.of_run import Compared, judge_pairs  # noqa: PLC0415
        from megatron_gad.evaluation.judge.prompt_files import conversation_text  # noqa: PLC0415

        pairs = [
            Compared(
                conversation_text(group.prompt.messages),
                run.codec.visible(group.rollouts[0].text),
                run.codec.visible(group.prompt.teacher_text),
            )
            for group in groups
        ]
        own = run.config.evaluation
        most_s = JUDGING_SHARE * run.config.watchdog.phase_s or JUDGING_S
        found = judge_pairs(own, run.folder / VERDICTS_FILE, most_s, pairs)
        spent = found.spent
        logger.info(
            "judge %s: %d verdicts, %d of them kept from before, %d unreadable; %d tokens read, "
            "%d written",
            *(own.judge_model, spent.num_calls, spent.num_replayed, spent.num_unreadable),
            *(spent.prompt_tokens, spent.completion_tokens),
        )
        if found.problem:
            logger.warning("%s: %s", failed, found.problem)
            return {}
        if spent.num_unanswered:
            logger.warning(
                "the judge left %d calls unanswered, whose pairs do not count: %s",
                *(spent.num_unanswered, "; ".join(spent.reasons[:1])),
            )
        return {
            "evaluation/judge_win_rate": found.win_rate,
            "evaluation/judge_order_disagreement": found.order_disagreement,
            "evaluation/judge_missing_share": found.num_missing / len(pairs),
        }
    return {}
