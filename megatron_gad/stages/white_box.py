"""Stage ``white_box``: on-policy distillation from a teacher whose probabilities are known."""

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megatron_gad.algorithms.divergence import divergence_loss, sampled_divergence_loss
from megatron_gad.config.further_stages import WhiteBoxConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.data.batching import policy_batch
from megatron_gad.engines.sglang.scoring import TeacherServer
from megatron_gad.runtime.parts import check_finite
from megatron_gad.runtime.run import Run
from megatron_gad.stages.agreement import compare_all
from megatron_gad.stages.rollouts import sample_groups
from megatron_gad.stages.stage import Stage
from megatron_gad.stages.step_result import ModelStep, StepResult, sample_rows
from megatron_gad.training.forward_backward import StepOutput
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.teacher import Teacher
from megatron_gad.types import Batch


class WhiteBoxStage(Stage[WhiteBoxConfig]):
    """Samples from the student as it is, and moves it to the teacher's distribution there.

    With p the student at the sampling temperature and q the teacher at temperature 1, the reverse
    KL is what the adversarial stage lowers without knowing q.
    """

    kind = WhiteBoxConfig

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._teacher: Teacher | TeacherServer | None = None

    def begin(self, run: Run) -> None:
        """Load the teacher, unless it is served."""
        folder = self.settings.teacher
        if self.settings.is_served:
            self._teacher = TeacherServer(folder, run.config.sglang.request_timeout_s)
            return
        with run.turn("build"):
            self._teacher = Teacher(folder, run.student)
            check_finite("white_box.teacher", folder, self._teacher)

    def step(self, run: Run) -> StepResult:
        """Sample, ask the teacher, and lower the divergence."""
        own = self.settings
        prompts = run.data.take(own.prompts_per_step)
        groups, metrics = sample_groups(run, prompts, own.group_size)
        batch = policy_batch(groups)
        output = self._learn(run, batch)
        run.progress.weights_version += not output.is_skipped
        rows = [group.prompt.index for group in groups for _ in group.rollouts]
        learned = ModelStep.of("student", output, batch, rows)
        if not output.is_skipped:
            metrics |= compare_all(run, output.rows, batch, weights_lag=0)
        return StepResult.of(metrics, learned=learned, samples=sample_rows(groups))

    def resume(self, run: Run, state: Mapping[str, Any], snapshots: Mapping[str, Any]) -> None:
        """Load the teacher, which never changes."""
        self.begin(run)

    def _learn(self, run: Run, batch: Batch) -> StepOutput:
        kind, temperature = self.settings.loss, run.config.rollout.temperature
        teacher = self._teacher
        assert teacher is not None, "the stage has not begun"
        if isinstance(teacher, TeacherServer) or kind == "sampled_kl":
            with run.turn("teacher"):
                if isinstance(teacher, Teacher):
                    logprobs = teacher.logprobs(batch)
                else:
                    logprobs = _ask(run.parallel, teacher, batch)
            batch = batch.with_ref_logprobs(logprobs)
            with run.turn("student"):
                return run.student.train(batch, sampled_divergence_loss, temperature)
        with run.turn("teacher"):
            batch, states = teacher.states(batch)
        with run.turn("student"):
            taught = teacher.taught(states, kind)
            return run.student.train(batch, divergence_loss, temperature, taught)


def _ask(parallel: Parallel, server: TeacherServer, batch: Batch) -> Tensor:
    """Return a server's [B, T] float32 log-probabilities of response tokens, 0 elsewhere.

    One rank of each copy of the student asks for all of them.
    """
    found: Tensor | None = None
    if parallel.is_engine_rank:
        starts = batch.lengths - batch.response_mask.sum(dim=1)
        pairs = zip(batch.tokens, batch.lengths.tolist(), starts.tolist(), strict=True)
        rows = [(tokens[:length].tolist(), start) for tokens, length, start in pairs]
        found = torch.zeros(batch.tokens.shape)
        answers = itertools.chain.from_iterable(server.logprobs(rows))
        found[batch.response_mask] = torch.tensor([*answers], dtype=torch.float32)
    return parallel.from_engine_rank(found)
