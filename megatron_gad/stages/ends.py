"""How stages begin and when they end."""

import math
from statistics import mean

from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.stages import AdversarialConfig, SeqkdConfig, WarmupConfig
from megatron_gad.data.batching import teacher_batch
from megatron_gad.runtime.run import Run, StageConfig
from megatron_gad.training.reference import Reference

# Steps over which the discriminator's running loss is taken: one step's is too noisy to end on.
RUNNING_STEPS = 20


def begin_stage(run: Run) -> None:
    """Set up what the stage needs, from the models as the stage before left them."""
    stage, progress = run.stage, run.progress
    progress.recent_losses = []
    progress.best_eval_loss, progress.num_evals_since_best = None, 0
    run.best_weights = None
    run.start_orders()
    if not isinstance(stage, SeqkdConfig) and not run.has_discriminator:
        with run.turn("build"):
            run.build_discriminator()
            source = run.config.discriminator.path or run.student.hf_weights()
            run.discriminator.load_hf_weights(source)
    set_schedules(run, reset_optimizer=not isinstance(stage, SeqkdConfig) and stage.reset_optimizer)
    if needs_reference(run):
        is_base = run.config.gad.reference == "base"
        path = run.config.student.path
        snapshot = run.student.snapshot_of(path) if is_base else run.student.snapshot()
        run.reference = Reference(run.student, snapshot)


def set_schedules(run: Run, reset_optimizer: bool = False) -> None:
    """Start the learning-rate schedules of the current stage."""
    stage = run.stage
    student_steps, discriminator_steps = optimizer_steps(stage, run.stage_steps)
    if isinstance(stage, SeqkdConfig):
        run.student.begin_stage(stage.lr, student_steps)
        return
    student_lr = run.config.student.lr if stage.student_lr is None else stage.student_lr
    run.student.begin_stage(student_lr, student_steps, reset_optimizer)
    lr = stage.discriminator_lr
    lr = run.config.discriminator.lr if lr is None else lr
    run.discriminator.begin_stage(lr, discriminator_steps, reset_optimizer)


def optimizer_steps(stage: StageConfig, num_steps: int) -> tuple[int, int]:
    """Return how often student and discriminator will have learned after this many steps.

    This is what a schedule's warm-up and cosine are counted in.
    """
    if isinstance(stage, SeqkdConfig):
        return num_steps, 0
    student_turns = max(0, num_steps - stage.discriminator_only_steps)
    if isinstance(stage, WarmupConfig):
        return student_turns if stage.train_student else 0, num_steps
    if stage.freeze_discriminator:
        return student_turns * stage.student_updates, 0
    judged = math.ceil(num_steps / stage.discriminator_interval)
    extra = num_steps * stage.extra_discriminator_steps
    return student_turns * stage.student_updates, judged + extra


def needs_reference(run: Run) -> bool:
    """Whether the stage compares the student with a reference; without one no forward is paid."""
    return isinstance(run.stage, AdversarialConfig) and run.config.gad.kl_coef > 0


def reason_to_end(run: Run, metrics: dict[str, float]) -> str:
    """Return why the stage ends after this step, or an empty string. May add to the metrics."""
    stage = run.stage
    is_last = run.progress.step_in_stage >= run.stage_steps
    if isinstance(stage, SeqkdConfig) and run.eval_prompts and (is_last or _epoch_ended(run)):
        _evaluate(run, stage, metrics)
    if isinstance(stage, WarmupConfig):
        if math.isfinite(metrics["discriminator/loss"]):  # else its step was skipped
            run.progress.recent_losses.append(metrics["discriminator/loss"])
        del run.progress.recent_losses[:-RUNNING_STEPS]
    return reason_now(run)


def reason_now(run: Run) -> str:
    """Return why the stage is at its end, from the progress alone; else an empty string."""
    stage = run.stage
    reason = ""
    if isinstance(stage, SeqkdConfig):
        reason = _patience_ran_out(run, stage)
    if isinstance(stage, WarmupConfig):
        reason = _discriminator_separates(run, stage)
    is_last = run.progress.step_in_stage >= run.stage_steps
    return reason or (f"its {run.stage_steps} steps are done" if is_last else "")


def refusal(run: Run) -> str:
    """Return why the next stage must not begin, or an empty string."""
    stage, recent = run.stage, run.progress.recent_losses
    if not isinstance(stage, WarmupConfig) or not recent or not stage.refuse_above:
        return ""
    if mean(recent) <= stage.refuse_above:
        return ""
    return (
        f"stage warmup ended with a running discriminator loss of {mean(recent):.3f}, above "
        f"warmup.refuse_above = {stage.refuse_above:g} (0.693 is chance): the discriminator "
        "cannot tell the two apart and would reward noise. Train it longer (warmup.steps), "
        "faster (warmup.discriminator_lr) or on more prompts of fewer samples; the same command "
        "with a larger warmup.steps goes on from here"
    )


def finish_stage(run: Run) -> None:
    """Settle what the stage hands over."""
    stage = run.stage
    if isinstance(stage, SeqkdConfig) and stage.keep_best and run.best_weights is not None:
        run.student.restore(run.best_weights)
        run.progress.weights_version += 1
    run.best_weights = None
    if isinstance(stage, AdversarialConfig):
        run.reference = None


def _epoch_ended(run: Run) -> bool:
    per_step, done = run.prompts_per_step, run.progress.step_in_stage
    rows = len(run.prompts)
    return done * per_step // rows > (done - 1) * per_step // rows


def _evaluate(run: Run, stage: SeqkdConfig, metrics: dict[str, float]) -> None:
    """Measure the held-out loss, and remember the best weights."""
    progress = run.progress
    mine = run.eval_prompts[run.parallel.data_rank :: run.parallel.data_size]
    with run.turn("evaluate"):
        loss = run.student.evaluate(teacher_batch(mine), supervised_loss).metrics["loss"]
    metrics["student/eval_loss"] = loss
    if progress.best_eval_loss is None or loss < progress.best_eval_loss:
        progress.best_eval_loss, progress.num_evals_since_best = loss, 0
        run.best_weights = run.student.snapshot() if stage.keep_best else None
    else:
        progress.num_evals_since_best += 1


def _patience_ran_out(run: Run, stage: SeqkdConfig) -> str:
    if not stage.patience or run.progress.num_evals_since_best < stage.patience:
        return ""
    return (
        f"the held-out loss has not fallen below {run.progress.best_eval_loss:.4f} "
        f"for {run.progress.num_evals_since_best} epochs"
    )


def _discriminator_separates(run: Run, stage: WarmupConfig) -> str:
    recent = run.progress.recent_losses
    if stage.stop_below and len(recent) == RUNNING_STEPS and mean(recent) < stage.stop_below:
        return f"the running discriminator loss is {mean(recent):.3f}, below {stage.stop_below:g}"
    return ""
