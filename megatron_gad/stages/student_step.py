"""The student's turn: fit the teacher's responses, or follow the advantages of its own."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.data.balance import prompt_cost
from megatron_gad.data.batching import take_rows, teacher_batch
from megatron_gad.runtime.run import Run
from megatron_gad.stages.step_result import ModelStep
from megatron_gad.training.exchange import rebalance
from megatron_gad.training.forward_backward import LossFunction
from megatron_gad.types import Batch, Group, Prompt


def learn_from_teacher(run: Run, prompts: Sequence[Prompt]) -> ModelStep:
    """Take one step of cross-entropy on the teacher's responses."""
    prompts = rebalance(prompts, prompt_cost, run.parallel)
    rows = [prompt.index for prompt in prompts]
    return take_student_step(run, teacher_batch(prompts), supervised_loss, rows)


def take_student_step(run: Run, batch: Batch, loss: LossFunction, rows: Sequence[int]) -> ModelStep:
    """Take one step of the student at temperature 1.

    rows: the number in the data set of the prompt of every row of the batch.
    """
    with run.turn("student"):
        learned = run.student.train(batch, loss)
    run.progress.weights_version += not learned.is_skipped
    return ModelStep.of("student", learned, batch, rows)


def take_policy_steps(
    run: Run, batch: Batch, groups: Sequence[Group], parts: Sequence[int], num_updates: int
) -> ModelStep:
    """Take the student's steps on one batch; return the first's rows and the last's metrics.

    After a step that is skipped no other is tried on them: it would meet the same numbers.

    batch: with advantages. groups: whose rollouts are its rows.
    parts: how many of the groups belong to each minibatch, in their order.
    num_updates: how often every minibatch is learned from.
    """
    gad, temperature = run.config.gad, run.config.rollout.temperature
    options = PolicyOptions(
        kind=gad.policy_loss,
        clip_range=gad.clip_range,
        clip_range_high=gad.clip_range_high,
        dual_clip=gad.dual_clip,
        kl_coef=gad.kl_coef if gad.kl_in == "loss" else 0.0,
        kl_estimator=gad.kl_estimator,
        aggregation=gad.aggregation,
        max_length=run.config.data.max_response_tokens,
        tis_cap=gad.tis_cap,
    )
    loss = partial(policy_loss, options=options)
    data_rows = [group.prompt.index for group in groups for _ in group.rollouts]
    num_steps, steps = num_updates * len(parts), list[ModelStep]()
    with run.turn("student"):
        # Without minibatches the first update's own forward pass gives the log-probabilities from
        # before it.
        old = run.student.logprobs(batch, temperature) if len(parts) > 1 else None
        minibatches = itertools.cycle(_row_ranges(parts, len(data_rows) // len(groups)))
        for rows in itertools.islice(minibatches, num_steps):
            known = batch if old is None else batch.with_old_logprobs(old)
            part = known if len(parts) == 1 else take_rows(known, rows)
            output = run.student.train(part, loss, temperature)
            old = output.rows if old is None else old
            own = [data_rows[row] for row in rows]
            steps.append(ModelStep.of("student", output, part, own))
            if output.is_skipped:
                break
    assert old is not None
    last, outputs = steps[-1], [step.output for step in steps]
    num_taken = sum(not output.is_skipped for output in outputs)
    run.progress.weights_version += num_taken
    metrics = {**last.output.metrics, "skipped_steps": float(num_steps - num_taken)}
    tokens = sum(output.trained_tokens for output in outputs)
    output = replace(last.output, rows=old, metrics=metrics, trained_tokens=tokens)
    return replace(last, output=output, data_rows=data_rows)


def _row_ranges(parts: Sequence[int], group_size: int) -> list[range]:
    """Return the rows of each part of the groups."""
    ends = [group_size * end for end in itertools.accumulate(parts)]
    return [range(start, end) for start, end in itertools.pairwise([0, *ends])]
