"""The rollouts of a step: weights swapped in, responses sampled, engine and trainer compared.

With ``adversarial.overlap`` the engine samples for the next step while this one trains. Rollouts
are then from the weights before the last update, which the truncated importance weights of the
policy loss correct for.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor

from megatron_gad.config.stages import AdversarialConfig
from megatron_gad.data.balance import group_cost
from megatron_gad.data.batching import policy_batch
from megatron_gad.engines.base import SamplingConfig, request_seed
from megatron_gad.engines.replay import as_record, from_record
from megatron_gad.files import to_json
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.sampler import Ahead, Request, describe_rollouts
from megatron_gad.stages.agreement import GapBound, check_gap, gap_bound
from megatron_gad.training.rebalance import rebalance
from megatron_gad.types import Batch, Group, Metrics, Prompt

# What engine and trainer are compared on where the rollouts themselves are older: a few prompts,
# and few tokens, because everything waits for them.
PROBE_PROMPTS = 4
PROBE_TOKENS = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRollouts:
    """What one adversarial step trains on.

    groups: of the step's prompts.
    extra_groups: of every extra step of the discriminator.
    weights_lag: updates of the student since the weights that sampled them.
    """

    groups: list[Group]
    extra_groups: list[list[Group]]
    weights_lag: int
    metrics: Metrics


def sample_groups(
    run: Run, prompts: Sequence[Prompt], group_size: int
) -> tuple[list[Group], Metrics]:
    """Sample from the student as it is: swap weights in if the engine's are old.

    Returns this data rank's groups to train on, which need not be those of its prompts.
    """
    request = Request(prompts, _sampling(run, group_size, run.progress.iteration, draw=0))
    (groups,), metrics = _sample_now(run, [request])
    metrics |= run.parallel.mean_over_data(describe_rollouts(groups))
    return _even_share(run, groups), metrics


def adversarial_rollouts(run: Run, stage: AdversarialConfig, num_steps: int) -> StepRollouts:
    """Return the rollouts of this step; with overlap leave the engine at work on the next's.

    num_steps: of the stage, after which nothing is sampled ahead.
    """
    if run.ahead is None:
        requests = _take_requests(run, stage, run.progress.iteration)
        sampled, metrics = _sample_now(run, requests)
    else:
        with run.turn("rollout"):
            sampled, metrics = run.ahead.result(), {}
        run.ahead = None
    if stage.overlap and run.progress.step_in_stage + 1 < num_steps:
        metrics |= _sample_ahead(run, stage)
    groups, extra = sampled[0], [group for groups in sampled[1:] for group in groups]
    size = len(extra) // max(1, stage.num_extra_steps)
    version = groups[0].rollouts[0].weights_version
    lag = run.progress.weights_version - version
    metrics["engine/weights_lag"] = float(lag)
    metrics |= run.parallel.mean_over_data(describe_rollouts(groups))
    parts = [extra[i * size : (i + 1) * size] for i in range(stage.num_extra_steps)]
    return StepRollouts(
        _even_share(run, groups), [_even_share(run, part) for part in parts], lag, metrics
    )


def compare_all(run: Run, logprobs: Tensor, batch: Batch, weights_lag: int) -> Metrics:
    """Compare engine and trainer on the whole batch; older weights may differ by any amount.

    logprobs: [B, T] float32 of the trainer, from before its update.
    """
    bound = GapBound() if weights_lag else logprob_gap_bound(run)
    gap = check_gap(run.student, None, logprobs, batch, bound)
    name = "off_policy_gap" if weights_lag else "logprob_gap"
    return {f"engine/{name}_max": gap.largest, f"engine/{name}_mean": gap.mean}


def logprob_gap_bound(run: Run) -> GapBound:
    """Return how far engine and trainer may be apart."""
    return gap_bound(run.config.rollout.logprob_gap_bound, run.config.compute)


def ahead_state(run: Run) -> list[list[str]]:
    """Return the rollouts that wait for the next step, of all data ranks; waits for the engine.

    One list a sampling, one line of JSON a group.
    """
    if run.ahead is None:
        return []
    return [
        [to_json(as_record(group)) for group in chain.from_iterable(shares)]
        for shares in map(run.parallel.gather_over_data, run.ahead.result())
    ]


def restore_ahead(run: Run, stage: AdversarialConfig, state: list[list[str]]) -> None:
    """Let the next step take the rollouts of a checkpoint, where they are those it would take.

    Where a setting changed, all data ranks sample the same prompts anew instead.
    """
    if not state:
        return
    orders = run.order_states()
    requests = _take_requests(run, stage, run.progress.iteration)
    saved = [[json.loads(line) for line in lines] for lines in state]
    stop_ids = run.codec.stop_ids
    found = [_find(*pair, stop_ids) for pair in zip(requests, saved, strict=False)]
    groups = [run.sampler.with_text(each) for each in found if each is not None]
    fits = len(groups) == len(requests) == len(saved)
    if all(run.parallel.gather_over_data(fits)):
        run.ahead = Ahead(orders, lambda: groups)
        return
    run.load_order_states(orders)
    if run.parallel.is_writer:
        logger.warning("the checkpoint's waiting rollouts do not fit the settings: sampled anew")


def _even_share(run: Run, groups: Sequence[Group]) -> list[Group]:
    """Return the groups to train on: this rank sampled for its prompts, however long they got."""
    return rebalance(groups, group_cost, run.parallel)


def _find(
    request: Request, records: list[dict[str, Any]], stop_ids: Sequence[int]
) -> list[Group] | None:
    """Return the recorded groups that a request asks for, None where some are not there."""
    by_row = {record["prompt_index"]: record for record in records}
    wanted = [by_row.get(prompt.index) for prompt in request.prompts]
    fitting = [
        record
        for record in wanted
        if record is not None and len(record["rollouts"]) == request.sampling.num_samples
    ]
    if len(fitting) < len(wanted):
        return None
    pairs = zip(fitting, request.prompts, strict=True)
    return [from_record(record, prompt, stop_ids, "the checkpoint") for record, prompt in pairs]


def _sample_ahead(run: Run, stage: AdversarialConfig) -> Metrics:
    """Swap weights in, compare, and let the engine start on the next step's rollouts."""
    orders = run.order_states()
    requests = _take_requests(run, stage, run.progress.iteration + 1)
    metrics = _swap_weights(run)
    if metrics:
        metrics |= _probe(run, requests[0].prompts[:PROBE_PROMPTS])
    begun = run.sampler.begin(requests)
    run.ahead = Ahead(orders, begun)
    return metrics


def _probe(run: Run, prompts: Sequence[Prompt]) -> Metrics:
    """Compare engine and trainer on a few tokens from the weights they both should hold."""
    most = min(PROBE_TOKENS, run.config.data.max_response_tokens)
    sampling = _sampling(run, 1, run.progress.iteration, draw=2, max_new_tokens=most)
    with run.turn("rollout"):
        (groups,) = run.sampler.sample([Request(prompts, sampling)])
    return _compare(run, groups)


def _sample_now(run: Run, requests: Sequence[Request]) -> tuple[list[list[Group]], Metrics]:
    metrics = _swap_weights(run)
    with run.turn("rollout"):
        sampled = run.sampler.sample(requests)
    if metrics:
        first = [Group(group.prompt, group.rollouts[:1]) for group in sampled[0][:PROBE_PROMPTS]]
        metrics |= _compare(run, first)
    return sampled, metrics


def _compare(run: Run, groups: Sequence[Group]) -> Metrics:
    batch = policy_batch(groups)
    with run.turn("compare"):
        logprobs = run.student.logprobs(batch, run.config.rollout.temperature)
    gap = check_gap(run.student, run.sampler, logprobs, batch, logprob_gap_bound(run))
    return {"engine/logprob_gap_max": gap.largest, "engine/logprob_gap_mean": gap.mean}


def _swap_weights(run: Run) -> Metrics:
    if run.sampler.weights_version == run.progress.weights_version:
        return {}
    with run.turn("swap"):
        num_bytes = run.sampler.load_weights(run.student.hf_weights(), run.progress.weights_version)
    return {"swap/bytes": float(num_bytes)}


def _take_requests(run: Run, stage: AdversarialConfig, iteration: int) -> list[Request]:
    """Take the prompts of a step: one request for its groups, one for its extra pairs, if any.

    One sample for each of many other prompts: the student does not change between extra steps.
    """
    prompts, shares = run.take_with_extra(
        stage.prompts_per_step, stage.extra_prompts, stage.num_extra_steps
    )
    requests = [Request(prompts, _sampling(run, stage.group_size, iteration, draw=0))]
    if shares:
        extra = list(chain.from_iterable(shares))
        requests.append(Request(extra, _sampling(run, 1, iteration, draw=1)))
    return requests


def _sampling(
    run: Run, num_samples: int, iteration: int, draw: int, max_new_tokens: int | None = None
) -> SamplingConfig:
    """Return how to sample in a step; ``draw`` tells apart the samplings of one step."""
    config = run.config
    return SamplingConfig(
        num_samples=num_samples,
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        max_new_tokens=max_new_tokens or config.data.max_response_tokens,
        seed=request_seed(config.seed, iteration, draw),
        name=f"step_{iteration + 1:07d}_{draw}",
    )
