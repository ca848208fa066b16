"""Takes the steps of a stage one by one, as a run does."""

from megatron_gad.config.toml import to_toml
from megatron_gad.reporting.health_watch import HealthWatch
from megatron_gad.runtime.run import Run
from megatron_gad.stages.stage import Stage
from megatron_gad.stages.step_result import StepResult


def take_step(run: Run, stage: Stage) -> StepResult:
    """Take a step, and let the stage look at its numbers."""
    result = stage.take_step(run)
    stage.after_step(run, result.metrics)
    return result


def health_of(run: Run) -> HealthWatch:
    """Watch the health of a run from its beginning, where its configuration is written."""
    (run.folder / "config.toml").write_text(to_toml(run.config))
    return HealthWatch(run.folder, run.config.health, run.parallel)
