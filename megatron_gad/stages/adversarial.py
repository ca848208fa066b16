"""Stage ``adversarial``: reinforcement learning on the scores of a discriminator that learns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor

from megatron_gad.algorithms.advantages import group_advantages
from megatron_gad.config.run import RunConfig
from megatron_gad.config.stages import AdversarialConfig
from megatron_gad.data.batching import policy_batch
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.sampler import Request
from megatron_gad.stages.agreement import compare_all
from megatron_gad.stages.discriminator_step import Practice, cost_of_group, judge_groups
from megatron_gad.stages.negatives import NegativesPool, as_read
from megatron_gad.stages.resampling import Scored, count_flat, replace_flat
from megatron_gad.stages.rewards import reward_groups
from megatron_gad.stages.rollouts import sample_now, sample_step
from megatron_gad.stages.stage import Learning, Stage
from megatron_gad.stages.step_result import StepResult, reward_metrics, sample_rows, zero_metrics
from megatron_gad.stages.student_step import take_policy_steps
from megatron_gad.stages.waiting_rollouts import ahead_state, restore_ahead
from megatron_gad.training.exchange import rebalance, take_turns
from megatron_gad.training.reference import Reference
from megatron_gad.types import Batch, Group, Metrics

# Of the samplings of a step, that of further prompts; those before it have names of their own.
FIRST_DRAW = 3


@dataclass(frozen=True)
class _Sampled:
    """What one step trains on.

    groups: of the step's prompts. parts: how many of them belong to each minibatch, in their order.
    batch: their rollouts as rows.
    extra_groups: of every extra step of the discriminator.
    weights_lag: updates of the student since the weights that sampled them.
    """

    groups: list[Group]
    parts: list[int]
    batch: Batch
    extra_groups: list[list[Group]]
    weights_lag: int
    metrics: Metrics


class AdversarialStage(Stage[AdversarialConfig]):
    """The game: the discriminator scores and learns, the student moves to higher scores."""

    kind = AdversarialConfig

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.reference: Reference | None = None
        size = config.gad.negatives_pool
        self.negatives = NegativesPool(size, config.seed) if size else None

    def student_learning(self, num_steps: int) -> Learning:
        """Several updates in every step, if the section says so."""
        lr = super().student_learning(num_steps).lr
        return Learning(lr, num_steps * self.settings.updates_per_step)

    def discriminator_learning(self, num_steps: int) -> Learning:
        """An update every ``discriminator_interval`` steps, and the extra ones in every step."""
        own, lr = self.settings, super().discriminator_learning(num_steps).lr
        interval = own.discriminator_interval
        judged = math.ceil(num_steps / interval) if interval else 0
        return Learning(lr, judged + num_steps * own.extra_discriminator_steps)

    def begin(self, run: Run) -> None:
        """Keep the student as it is as the reference of the KL."""
        if self._needs_reference:
            self.reference = Reference(run.student, run.student.snapshot())

    def step(self, run: Run) -> StepResult:
        """Sample, let the discriminator score and learn, and raise what it scored higher."""
        sampled = self._sample(run)
        is_on_turn = self.settings.discriminator_learns(run.progress.step_in_stage)
        learns = is_on_turn and not run.restraint.pauses_discriminator
        practice = self._practice(run, sampled.groups, learns)
        num_trained, shows = self.settings.discriminator_samples, run.writes_samples
        judged = judge_groups(run, sampled.groups, learns, num_trained, practice, shows)
        extra_groups = [] if run.restraint.pauses_discriminator else sampled.extra_groups
        extra = [judge_groups(run, groups) for groups in extra_groups]

        batch = sampled.batch
        if not self.settings.resample_rounds:
            batch = self._with_reference(run, batch)
        scored = self._score(run, batch, sampled.groups, judged.scores_PG)
        rewards = reward_metrics(run.parallel, scored.rewarded.total_PG)
        rewards |= scored.rewarded.metrics
        if self.settings.resample_rounds:
            scored, replaced = self._with_further(run, scored)
            rewards |= replaced
            batch = self._with_reference(run, policy_batch(scored.groups))
        rewards |= zero_metrics(run.parallel, scored.advantages_PG)

        learned, agreement = None, {}
        if self.student_learns(run):
            batch = batch.with_advantages(scored.advantages_PG.flatten())
            batch = batch.without_rows(scored.rewarded.is_left_out_PG.flatten())
            learned = take_policy_steps(
                run, batch, scored.groups, sampled.parts, self.settings.student_updates
            )
            if not learned.output.is_skipped:
                agreement = compare_all(run, learned.output.rows, batch, sampled.weights_lag)
        # The teacher's texts of further groups have no scores.
        of_teachers = None if self.settings.resample_rounds else judged.teacher_scores_P
        shown = (scored.groups, scored.scores_PG, scored.advantages_PG, scored.rewarded.parts)
        return StepResult.of(
            sampled.metrics | judged.metrics | agreement,
            judged=[each.step for each in (judged, *extra)],
            learned=learned,
            samples=sample_rows(*shown, teacher_scores_P=of_teachers, tokens=judged.tokens),
            rewards=rewards,
        )

    def state(self, run: Run) -> dict[str, Any]:
        """Return the rollouts that wait for the next step, and past groups."""
        return {
            "ahead": ahead_state(run),
            "negatives": self.negatives.state() if self.negatives is not None else [],
        }

    def snapshots(self) -> dict[str, list[Tensor]]:
        """Return the reference."""
        return {} if self.reference is None else {"reference": self.reference.snapshot}

    def resume(
        self, run: Run, state: Mapping[str, Any], snapshots: Mapping[str, list[Tensor]]
    ) -> None:
        """Go on with the reference of the stage's start, past groups, and rollouts that wait."""
        if self.negatives is not None:
            self.negatives.load(state.get("negatives", ()))
        if self._needs_reference:
            if "reference" not in snapshots:
                raise ValueError(
                    f"gad.kl_coef = {self.config.gad.kl_coef:g}, but the stage began without a "
                    "reference (kl_coef = 0), so the checkpoint holds none; keep kl_coef = 0 until "
                    "the stage ends"
                )
            self.reference = Reference(run.student, snapshots["reference"])
        if state["ahead"]:
            orders, requests = run.data.states(), self._requests(run, run.progress.iteration)
            restore_ahead(run, requests, orders, state["ahead"])

    def _practice(self, run: Run, groups: Sequence[Group], learns: bool) -> Practice | None:
        """Return what the discriminator trains on: as many pairs as without past groups.

        The step's own groups may be drawn from the next step on.
        """
        if self.negatives is None:
            return None
        gad, iteration = self.config.gad, run.progress.iteration
        shares = run.parallel.gather_over_data([as_read(group) for group in groups])
        read = [*chain.from_iterable(shares)]
        practice = None
        if learns:
            rows = [group.prompt.index for group in read]
            count = round(gad.negatives_share * len(rows))
            past = self.negatives.draw(count, iteration, gad.negatives_draw)
            resting = self.negatives.resting(rows, len(past), iteration)
            own = past[run.parallel.data_rank :: run.parallel.data_size]
            practice = Practice([each.group for each in own], resting)
        self.negatives.add(iteration, read)
        return practice

    @property
    def _needs_reference(self) -> bool:
        """Without a KL no forward of a reference is paid."""
        return self.config.gad.kl_coef > 0

    def _sample(self, run: Run) -> _Sampled:
        """Return the rollouts of this step, at equal cost for all data ranks."""
        is_last = run.progress.step_in_stage + 1 >= self.settings.num_steps(len(run.data.prompts))
        is_ahead = self.settings.overlap and not is_last
        cost = cost_of_group(run)
        (groups, *more), metrics = sample_step(run, partial(self._requests, run), is_ahead)
        extra = list(chain.from_iterable(more))
        lag = run.progress.weights_version - groups[0].rollouts[0].weights_version
        metrics["engine/weights_lag"] = float(lag)
        num_extra = self.settings.extra_discriminator_steps
        size = len(extra) // max(1, num_extra)
        parts = [extra[i * size : (i + 1) * size] for i in range(num_extra)]
        rows = [group.prompt.index for group in groups]
        cut = take_turns(groups, rows, self.settings.num_parts, run.parallel)
        shared = [rebalance(part, cost, run.parallel) for part in (*cut, *parts)]
        minibatches, extra = shared[: len(cut)], shared[len(cut) :]
        even = list(chain.from_iterable(minibatches))
        return _Sampled(even, [*map(len, minibatches)], policy_batch(even), extra, lag, metrics)

    def _requests(self, run: Run, iteration: int) -> list[Request]:
        """Take the prompts of a step: one request for its groups, one for its extra pairs, if any.

        One sample for each of many other prompts: the student does not change between extra steps.
        """
        own = self.settings
        prompts, shares = run.data.take_with_extra(
            own.prompts_per_step, own.extra_prompts, own.extra_discriminator_steps
        )
        sampling = SamplingConfig.of_step(run.config, iteration, own.group_size)
        requests = [Request(prompts, sampling)]
        if shares:
            sampling = SamplingConfig.of_step(run.config, iteration, 1, draw=1)
            requests.append(Request(list(chain.from_iterable(shares)), sampling))
        return requests

    def _score(self, run: Run, batch: Batch, groups: Sequence[Group], scores_PG: Tensor) -> Scored:
        """Return rewards and advantages of groups, whose responses are the rows of the batch."""
        if self.config.gad.kl_in == "reward" and batch.ref_logprobs is None:
            batch = self._with_reference(run, batch)
        rewarded = reward_groups(run, batch, groups, scores_PG)
        advantages_PG = group_advantages(rewarded.total_PG, self.config.gad.advantage)
        return Scored([*groups], scores_PG, rewarded, advantages_PG)

    def _with_further(self, run: Run, scored: Scored) -> tuple[Scored, Metrics]:
        """Replace groups that teach nothing by groups of further prompts, as many as are found.

        The discriminator scores these and does not learn from them. All ranks call it.
        """
        own, num_replaced = self.settings, 0
        shares = run.parallel.gather_over_data([group.prompt.index for group in scored.groups])
        taken = [*chain.from_iterable(shares)]
        for number in range(own.resample_rounds):
            if not count_flat(run.parallel, scored):
                break
            prompts = run.data.take(own.prompts_per_step, besides=taken)
            run.progress.consumed_samples += own.prompts_per_step
            sampling = SamplingConfig.of_step(
                run.config, run.progress.iteration, own.group_size, draw=FIRST_DRAW + number
            )
            (groups,), _ = sample_now(run, [Request(prompts, sampling)])
            run.sampler.take_work()  # what is reported is of the step's own prompts
            groups = rebalance(groups, cost_of_group(run), run.parallel)
            judged = judge_groups(run, groups, learns=False)
            further = self._score(run, policy_batch(groups), groups, judged.scores_PG)
            scored, count = replace_flat(run.parallel, scored, further)
            num_replaced += count
            shares = run.parallel.gather_over_data([group.prompt.index for group in groups])
            taken += chain.from_iterable(shares)
        return scored, {"advantage/replaced_share": num_replaced / own.prompts_per_step}

    def _with_reference(self, run: Run, batch: Batch) -> Batch:
        if self.reference is None:
            return batch
        with run.turn("reference"):
            logprobs = self.reference.logprobs(batch, self.config.rollout.temperature)
        return batch.with_ref_logprobs(logprobs)
