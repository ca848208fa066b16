"""Takes the steps of a stage one by one, as a run does."""

from megatron_gad.runtime.run import Run
from megatron_gad.stages.stage import Stage
from megatron_gad.stages.step_result import StepResult


def take_step(run: Run, stage: Stage) -> StepResult:
    """Take a step and count it."""
    result = stage.step(run)
    run.progress.count_step(stage.settings.num_prompts)
    stage.after_step(run, result.metrics)
    return result
