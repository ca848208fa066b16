"""The student's turn: fit the teacher's responses, or follow the advantages of its own."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.data.balance import prompt_cost
from megatron_gad.data.batching import teacher_batch
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
    run: Run, batch: Batch, groups: Sequence[Group], num_updates: int
) -> ModelStep:
    """Take the student's steps on one batch; return the first's rows and the last's metrics.

    batch: with advantages. groups: whose rollouts are its rows. After a step that is skipped no
    other is tried on them: it would meet the same numbers.
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
    with run.turn("student"):
        first = learned = run.student.train(batch, loss, temperature)
        num_taken = int(not learned.is_skipped)
        while not learned.is_skipped and num_taken < num_updates:
            # The first update's own forward gave the log-probabilities from before it.
            old = batch.with_old_logprobs(first.rows)
            learned = run.student.train(old, loss, temperature)
            num_taken += not learned.is_skipped
    run.progress.weights_version += num_taken
    data_rows = [group.prompt.index for group in groups for _ in group.rollouts]
    last = ModelStep.of("student", learned, batch, data_rows)
    metrics = {**learned.metrics, "skipped_steps": float(num_updates - num_taken)}
    tokens = num_updates * first.trained_tokens
    output = replace(learned, rows=first.rows, metrics=metrics, trained_tokens=tokens)
    return replace(last, output=output)
