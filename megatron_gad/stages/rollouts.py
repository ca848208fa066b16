"""The rollouts of a step: weights swapped in, responses sampled, engine and trainer compared."""

from collections.abc import Callable, Sequence

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.sampler import Ahead, Request
from megatron_gad.stages.agreement import compare_first
from megatron_gad.stages.discriminator_step import cost_of_group
from megatron_gad.training.exchange import rebalance
from megatron_gad.training.reference import Reference
from megatron_gad.types import Group, Metrics, Prompt

# What engine and trainer are compared on after a swap: a few prompts, because everything waits, and
# few tokens, if they are sampled for nothing else.
PROBE_PROMPTS = 4
PROBE_TOKENS = 16
# The groups of every request, for the prompts of this data rank, and what is reported of them.
Sampled = tuple[list[list[Group]], Metrics]


def sample_groups(
    run: Run, prompts: Sequence[Prompt], group_size: int, earlier: Reference | None = None
) -> tuple[list[Group], Metrics]:
    """Sample from the student as it is, or as it was earlier.

    Returns this data rank's groups to train on, which need not be those of its prompts.
    """
    sampling = SamplingConfig.of_step(run.config, run.progress.iteration, group_size)
    (groups,), metrics = sample_now(run, [Request(prompts, sampling)], earlier)
    metrics |= run.sampler.take_metrics(groups, run.config.rollout.engine == "replay")
    return rebalance(groups, cost_of_group(run), run.parallel), metrics


def sample_step(run: Run, take: Callable[[int], Sequence[Request]], is_ahead: bool) -> Sampled:
    """Return what this step trains on: what was sampled ahead for it, or else is sampled now.

    Rollouts that were sampled ahead are from the weights before the last update. The truncated
    importance weights of the policy loss correct for that.

    take: takes the prompts of an iteration. is_ahead: leave the engine at work on the rollouts of
        the next step.
    """
    iteration, metrics = run.progress.iteration, {}
    if run.data.ahead is None:
        sampled, metrics = sample_now(run, take(iteration))
    else:
        with run.turn("rollout"):
            sampled = run.data.ahead.result()
        run.data.ahead = None
    metrics |= run.sampler.take_metrics(sampled[0], run.config.rollout.engine == "replay")
    if is_ahead:
        orders, requests = run.data.states(), take(iteration + 1)
        if run.sampler.weights_version != run.progress.weights_version:
            most = min(PROBE_TOKENS, run.config.data.max_response_tokens)
            probe = SamplingConfig.of_step(run.config, iteration, 1, draw=2, max_new_tokens=most)
            _, compared = sample_now(run, [Request(requests[0].prompts[:PROBE_PROMPTS], probe)])
            metrics |= compared
            run.sampler.take_work()  # the probe's is no work of a step
        run.data.ahead = Ahead(orders, run.sampler.start(requests))
    return sampled, metrics


def sample_now(run: Run, requests: Sequence[Request], earlier: Reference | None = None) -> Sampled:
    """Sample from the student; compare engine and trainer if the engine's weights are new."""
    metrics = _swap_weights(run, earlier)
    with run.turn("rollout"):
        sampled = run.sampler.sample(requests)
    if metrics:
        first = [Group(group.prompt, group.rollouts[:1]) for group in sampled[0][:PROBE_PROMPTS]]
        metrics |= compare_first(run, first, earlier)
    return sampled, metrics


def _swap_weights(run: Run, earlier: Reference | None = None) -> Metrics:
    """Give the engine the student's weights; nothing is reported if it holds them already."""
    source = run.student if earlier is None else earlier
    version = run.progress.weights_version if earlier is None else earlier.version
    if run.sampler.weights_version == version:
        return {}
    with run.turn("swap"):
        num_bytes = run.sampler.load_weights(source.hf_weights(), version)
    return {"swap/bytes": float(num_bytes)}
