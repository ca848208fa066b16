"""Stage ``best_of_n``: cross-entropy on the samples with the highest rewards."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

import torch
from torch import Tensor

from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.further_stages import BestOfNConfig
from megatron_gad.data.batching import policy_batch
from megatron_gad.runtime.run import Run
from megatron_gad.stages.discriminator_step import judge_groups
from megatron_gad.stages.rewards import sum_rewards
from megatron_gad.stages.rollouts import sample_groups
from megatron_gad.stages.stage import Learning, Stage
from megatron_gad.stages.step_result import StepResult, sample_rows
from megatron_gad.stages.student_step import take_student_step
from megatron_gad.types import Group


class BestOfNStage(Stage[BestOfNConfig]):
    """Samples from the student as it is, ranks, and fits the best."""

    kind = BestOfNConfig

    def discriminator_learning(self, num_steps: int) -> Learning:
        """It scores and does not learn."""
        return Learning(super().discriminator_learning(num_steps).lr, 0)

    def step(self, run: Run) -> StepResult:
        """Sample, score, and fit what is chosen."""
        own = self.settings
        prompts = run.data.take(own.prompts_per_step)
        groups, metrics = sample_groups(run, prompts, own.group_size)
        judged = judge_groups(run, groups, learns=False, shows=run.writes_samples)
        rewarded = sum_rewards(run, groups, judged.scores_PG)
        is_chosen_PG = best(rewarded.total_PG, own.keep) & ~rewarded.is_left_out_PG
        if own.min_margin is not None:
            is_chosen_PG &= exceed(judged.scores_PG, judged.teacher_scores_P, own.min_margin)
        chosen = chosen_groups(groups, is_chosen_PG)
        share = (float(is_chosen_PG.sum()), float(is_chosen_PG.numel()))
        metrics |= run.parallel.mean_over_data({"response/chosen_share": share})
        metrics |= rewarded.metrics
        rows = [group.prompt.index for group in chosen for _ in group.rollouts]
        learned = take_student_step(run, policy_batch(chosen), supervised_loss, rows)
        samples = sample_rows(
            groups,
            judged.scores_PG,
            rewards=rewarded.parts,
            teacher_scores_P=judged.teacher_scores_P,
            tokens=judged.tokens,
        )
        return StepResult.of(metrics, judged=[judged.step], learned=learned, samples=samples)


def best(rewards_PG: Tensor, keep: int) -> Tensor:
    """Return which samples have the highest rewards of their group, [P, G] bool.

    rewards_PG: [P, G] float32. keep: of each group; of equal rewards the first count.
    """
    order_PG = rewards_PG.argsort(dim=1, descending=True, stable=True)
    is_best_PG = torch.zeros_like(rewards_PG, dtype=torch.bool)
    return is_best_PG.scatter_(1, order_PG[:, :keep], True)


def exceed(scores_PG: Tensor, teacher_scores_P: Tensor, min_margin: float) -> Tensor:
    """Return which scores exceed that of the teacher's response by a margin, [P, G] bool.

    scores_PG: [P, G] float32. teacher_scores_P: [P] float32.
    """
    return scores_PG > teacher_scores_P[:, None] + min_margin


def chosen_groups(groups: Sequence[Group], is_chosen_PG: Tensor) -> list[Group]:
    """Return the groups with the samples that are chosen, without groups that have none.

    A rank on which none is chosen gets one empty response, which has nothing to fit, because all
    ranks take the step together.
    """
    found: list[Group] = []
    for group, is_chosen_G in zip(groups, is_chosen_PG.tolist(), strict=True):
        kept = tuple(compress(group.rollouts, is_chosen_G))
        found += [Group(group.prompt, kept)] if kept else []
    if found:
        return found
    nothing = replace(groups[0].rollouts[0], ids=(), rollout_logprobs=(), text="", text_ids=())
    return [Group(groups[0].prompt, (nothing,))]
