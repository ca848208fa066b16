"""Faults in how stages begin, learn at which rate, end, and hand over."""

from tests.mutants.mutant import Mutant, in_settings, in_stages, oracle

PUBLISHED = oracle("as published, with everything uneven")
RESUMED = oracle("resumed in every stage")
MOMENTS = in_stages("test_the_first_update_of_a_stage_shows_whether_moments_were_kept")
FLAGS = "tests/unit/test_load_flags.py::"
RESHARDING = "tests/distributed/test_resharding.py::"
BACKGROUND = "tests/unit/training/test_background_write.py::"
BACK = "tests/unit/test_going_back.py::"
RESUME = "tests/unit/test_resume.py::"
BEST = in_stages("test_seqkd_hands_over_its_best_weights")
SEPARATES = in_stages("test_warmup_ends_when_the_discriminator_separates")

END_MUTANTS = (
    Mutant(
        "the discriminator starts from the base model and not from the student as it is",
        "run.config.discriminator.path or run.student.hf_weights()",
        "run.config.discriminator.path or run.config.student.path",
        PUBLISHED,
    ),
    Mutant(
        "discriminator.path is ignored",
        "source = run.config.discriminator.path or run.student.hf_weights()",
        "source = run.student.hf_weights()",
        oracle("a discriminator from another folder"),
    ),
    Mutant(
        "seqkd.lr is ignored",
        'rate of its own."""\n        return self.lr',
        'rate of its own."""\n        return default',
        in_stages("test_seqkd_learns_and_touches_no_engine"),
    ),
    Mutant(
        "the stage's rate of the student is ignored",
        "return default if self.student_lr is None else self.student_lr",
        "return default",
        PUBLISHED,
    ),
    Mutant(
        "the stage's rate of the discriminator is ignored",
        "return default if self.discriminator_lr is None else self.discriminator_lr",
        "return default",
        PUBLISHED,
    ),
    Mutant(
        "the discriminator without a rate of its own takes the student's",
        "self.settings.discriminator_rate(self.config.discriminator.lr)",
        "self.settings.discriminator_rate(self.config.student.lr)",
        in_settings("test_a_stage_without_rates_takes_those_of_the_models"),
    ),
    Mutant(
        "reset_optimizer is ignored by both models",
        "        if reset_optimizer:\n            forget_moments",
        "        if False:\n            forget_moments",
        MOMENTS,
    ),
    Mutant(
        "reset_optimizer is ignored by the discriminator",
        "run.discriminator.begin_stage(own.lr, own.num_steps, resets_optimizer)",
        "run.discriminator.begin_stage(own.lr, own.num_steps)",
        oracle("moments forgotten between the stages"),
    ),
    Mutant(
        "every stage forgets the moments",
        "        if reset_optimizer:\n            forget_moments",
        "        if True:\n            forget_moments",
        MOMENTS,
    ),
    Mutant(
        "the schedule of the discriminator leaves out a last interval that is not whole",
        "math.ceil(num_steps / interval)",
        "num_steps // interval",
        in_stages("test_schedules_are_as_long_as_the_models_learn"),
    ),
    Mutant(
        "the schedule of the student does not count several updates of a batch",
        "return Learning(lr, num_steps * self.settings.updates_per_step)",
        "return Learning(lr, num_steps)",
        in_stages("test_schedules_are_as_long_as_the_models_learn"),
    ),
    Mutant(
        "patience lasts one evaluation too long",
        "self.num_evals_since_best < self.settings.patience",
        "self.num_evals_since_best <= self.settings.patience",
        in_stages("test_patience_ends_seqkd"),
    ),
    Mutant(
        "an evaluation that is worse counts as the best",
        "loss < self.best_loss",
        "loss > self.best_loss",
        BEST,
    ),
    Mutant(
        "seqkd.keep_best is ignored",
        "run.student.snapshot() if self.settings.keep_best else None",
        "None",
        BEST,
    ),
    Mutant(
        "the held-out loss is taken on the training rows",
        "mine = run.data.eval_prompts[",
        "mine = run.data.prompts[",
        BEST,
    ),
    Mutant(
        "the held-out loss is taken after every step",
        "(is_last or epochs > epochs_before)",
        "True",
        BEST,
    ),
    Mutant(
        "the warm-up ends while the discriminator's loss is above stop_below",
        "len(recent) == RUNNING_STEPS and mean(recent) < limit",
        "len(recent) == RUNNING_STEPS and mean(recent) > limit",
        SEPARATES,
    ),
    Mutant(
        "the warm-up ends on the loss of a single step",
        "len(recent) == RUNNING_STEPS and mean(recent) < limit",
        "recent and recent[-1] < limit",
        SEPARATES,
    ),
    Mutant(
        "a discriminator passes that separates nothing",
        "mean(recent) <= (wanted + CHANCE_LOSS) / 2",
        "mean(recent) <= CHANCE_LOSS",
        in_stages("test_a_warmup_that_failed_is_refused_with_the_remedy"),
    ),
)

RESUME_MUTANTS = (
    Mutant(
        "the student's schedule begins anew after a resume",
        'run.student.schedule.resume(schedule_steps["student"])',
        "pass",
        RESUMED,
    ),
    Mutant(
        "the discriminator's schedule begins anew after a resume",
        'run.discriminator.schedule.resume(schedule_steps["discriminator"])',
        "pass",
        RESUMED,
    ),
    Mutant(
        "the data order begins anew after a resume",
        "    run.data.load_states(state)\n    snapshots",
        "    snapshots",
        RESUMED,
    ),
    Mutant(
        "the reference is the student of the moment after a resume",
        'Reference(run.student, snapshots["reference"])',
        "Reference(run.student, run.student.snapshot())",
        RESUMED,
    ),
    Mutant(
        "the discriminator's weights are not restored",
        '        load(folder / "discriminator", run.discriminator)\n',
        "        run.discriminator.load_hf_weights(run.student.hf_weights())\n",
        RESUMED,
    ),
    Mutant(
        "the optimizer's states are not restored",
        'load_optimizer(optimizer, loaded["optimizer"])',
        "pass",
        ("tests/unit/training/test_checkpoint.py::test_going_on_from_a_checkpoint_is_going_on",),
    ),
    Mutant(
        "the student is not restored",
        '    load(folder / "student", run.student)\n',
        "",
        RESUMED,
    ),
    Mutant(
        "the version of the weights is not restored",
        "if k in names})",
        'if k in names - {"weights_version"}})',
        (f"{RESUME}test_a_half_written_checkpoint_is_not_seen", *RESUMED),
    ),
    Mutant(
        "the best weights so far are not saved",
        'return {} if self.best_weights is None else {"best": self.best_weights}',
        "return {}",
        (f"{RESUME}test_the_best_weights_so_far_are_kept_over_a_resume",),
    ),
    Mutant(
        "prompts that wait for the next step are lost in a resume",
        "            return self.ahead.orders\n",
        "            pass\n",
        oracle("resumed while sampling while training"),
    ),
    Mutant(
        "a checkpoint forgets the rollouts that wait",
        '"ahead": ahead_state(run),',
        '"ahead": [],',
        ("tests/unit/stages/test_overlap.py::test_a_checkpoint_holds_the_rollouts_that_wait",),
    ),
    Mutant(
        "a snapshot that is read leaves its weights in the student",
        "        trainer.swap(own)\n    return own",
        "        pass\n    return own",
        RESUMED,
    ),
    Mutant(
        "a state of another data order is accepted",
        "if state[key] != own[key]:",
        "if False:",
        ("tests/unit/data/test_order.py",),
    ),
    Mutant(
        "a file that changed since it was written is read without a word",
        "return _look_at(file) == written",
        "return True",
        ("tests/unit/test_manifest.py",),
    ),
    Mutant(
        "a damaged checkpoint gets a name that the next one deletes",
        "folder.rename(next(each for each in free if not each.exists()))",
        "folder.rename(folder.with_suffix('.draft'))",
        (f"{BACK}test_one_flipped_bit_sends_the_run_back_with_a_loud_line",),
    ),
    Mutant(
        "weights that are not finite are saved",
        "if not trainer.has_usable_state():",
        "if False:",
        (f"{BACK}test_broken_weights_are_never_published",),
    ),
    Mutant(
        "other texts in as many rows are accepted",
        "digest.update(text.encode())",
        "pass",
        (f"{BACK}test_other_texts_in_as_many_rows_are_refused",),
    ),
    Mutant(
        "checkpoints are written while steps are skipped",
        "if is_due and not reason and not any(run.skips_in_a_row.values()):",
        "if is_due and not reason:",
        (
            "tests/unit/stages/test_skipped_steps.py::"
            "test_no_checkpoint_is_written_while_steps_are_skipped_and_a_usable_one_is_named",
        ),
    ),
    Mutant(
        "the end of a rank's piece of a parameter is not saved",
        "    yield from _of_row(last, rest, inner, last * inner, end)\n",
        "",
        ("tests/unit/training/test_optimizer_shards.py",),
    ),
    Mutant(
        "the first data rank writes everything",
        "        str(folder),\n        strategy,\n        # The strategy looks",
        "        str(folder),\n        None,\n        # The strategy looks",
        (f"{RESHARDING}test_four_data_ranks_write_and_read_a_quarter_each",),
    ),
    Mutant(
        "--no-load-optim takes the optimizers' states all the same",
        "if run.config.checkpoint.load_optim or not is_other else load_model_weights",
        "",
        (f"{FLAGS}test_without_the_optimizers_states_a_run_goes_on_with_a_first_step",),
    ),
    Mutant(
        "a checkpoint in the background holds what the models become while it is written",
        "(item, to_host(tensor)) for item, tensor in tensors",
        "(item, tensor) for item, tensor in tensors",
        (f"{BACKGROUND}test_it_holds_what_was_there_when_it_began_and_shows_once_it_is_whole",),
    ),
    Mutant(
        "nobody looks whether every part of a checkpoint has a writer",
        "        validate_sharding_integrity(held)\n",
        "",
        ("tests/unit/training/test_shared_writes.py",),
    ),
    Mutant(
        "a load tells every rank what all ranks want",
        "that wants what is not there fails.\n        validate_access_integrity=False,\n",
        "that wants what is not there fails.\n",
        ("tests/distributed/test_scale.py::test_load_sends_what_its_formula_says",),
    ),
    Mutant(
        "a save copies the optimizer's states on the device",
        "    values = values.detach().view(-1)\n",
        "    values = values.detach().clone().view(-1)\n",
        (f"{BACKGROUND}test_a_save_makes_no_numbers_on_the_device",),
    ),
    Mutant(
        "a save in the background is planned as if it kept one model at a time",
        "return sum(self.parts.values()) if self.in_background else max(self.parts.values())",
        "return max(self.parts.values())",
        ("tests/unit/planning/test_saving.py",),
    ),
)
