"""Takes the steps of a stage one by one, as a run does."""

from megatron_gad.runtime.run import Run
from megatron_gad.stages.stage import Stage
from megatron_gad.stages.step_result import StepResult


def take_step(run: Run, stage: Stage) -> StepResult:
    """Take a step, and let the stage look at its numbers."""
    result = stage.take_step(run)
    stage.after_step(run, result.metrics)
    return result
