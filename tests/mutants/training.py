"""Faults in an optimizer step: denominators, microbatches, AdamW, schedules, borrowed weights."""

from tests.mutants.mutant import Mutant, in_stages, oracle

UNIT = "tests/unit/training/"
OPTIMIZER = f"{UNIT}test_optimizer.py::"
ADAMW = (f"{OPTIMIZER}test_steps_equal_those_of_torch_adamw",)
DECAY = (f"{OPTIMIZER}test_matrices_decay_and_norms_and_biases_do_not",)
WARM_UP = (f"{OPTIMIZER}test_warm_up_is_linear",)
RESET = (f"{OPTIMIZER}test_a_reset_optimizer_steps_like_a_new_one",)
JUDGING = "tests/unit/stages/test_judging.py::"
GRADIENTS = f"{UNIT}test_trainer_gradients.py::"
SPLIT = (f"{GRADIENTS}test_splitting_and_padding_keep_the_students_gradient",)
STUDENT = (f"{GRADIENTS}test_the_students_loss_and_gradients_equal_those_of_transformers",)
SKIPPED = (f"{UNIT}test_skipped_step.py",)
STOPS = (
    "tests/unit/stages/test_skipped_steps.py::"
    "test_a_run_stops_after_skipping_in_a_row_and_names_rows_and_checkpoint",
)
STATE = f"{UNIT}test_trainer_state.py::"
SHARED = f"{UNIT}test_shared_prompts.py::"

STEP_MUTANTS = (
    Mutant(
        "the loss is a mean over each microbatch",
        "calculate_per_token_loss=True,",
        "calculate_per_token_loss=False,",
        SPLIT,
    ),
    Mutant(
        "gradients are not divided by the global count",
        "chunk.config.finalize_model_grads_func = finalize_model_grads",
        "chunk.config.finalize_model_grads_func = lambda *_, **__: None",
        STUDENT,
    ),
    Mutant(
        "the gradients of the step before are still there",
        "            chunk.zero_grad_buffer()\n",
        "            pass\n",
        (f"{GRADIENTS}test_gradients_of_the_step_before_are_gone",),
    ),
    Mutant(
        "what a step computed per row comes back in the order of the microbatches",
        "torch.empty_like(joined).index_copy(0, torch.tensor(rows), joined)",
        "joined",
        (f"{GRADIENTS}test_rows_are_the_logprobs_from_before_the_update",),
    ),
    Mutant(
        "the last microbatch of a batch is left out",
        "for unit in part for row in units[unit]] for part in joined]",
        "for unit in part for row in units[unit]] for part in joined[:-1] or joined]",
        SPLIT,
    ),
    Mutant(
        "a microbatch of tokens may be larger than its bound",
        "return self.num_tokens(lengths) <= self.max_tokens",
        "return self.num_tokens(lengths) <= 2 * self.max_tokens",
        ("tests/unit/data/test_partition.py",),
    ),
    Mutant(
        "a microbatch of rows may have more than its bound",
        "return len(lengths) <= self.rows",
        "return len(lengths) <= 2 * self.rows",
        ("tests/unit/data/test_partition.py",),
    ),
    Mutant(
        "equal texts are scored one by one",
        "    if not isinstance(batch, PairBatch):\n        return list(range(num_rows))",
        "    if batch is not None:\n        return list(range(num_rows))",
        (f"{JUDGING}test_equal_texts_get_equal_scores_to_the_bit",),
    ),
    Mutant(
        "scores of equal texts go to other rows",
        "read = ScorerOutput(read.scores[reading.row_of])",
        "read = ScorerOutput(read.scores[reading.row_of.sort().values])",
        (f"{JUDGING}test_equal_texts_on_one_row_equal_a_row_for_each",),
    ),
    Mutant(
        "packed log-probabilities are laid out in other rows",
        "return self.values[0][self.places[at]]",
        "return self.values[0].flip(0)[self.places[at]]",
        (f"{GRADIENTS}test_packing_keeps_the_students_gradient",),
    ),
    Mutant(
        "a shared prompt counts for each of its rows in what a microbatch may hold",
        "found.append(self.tokens[row] - (size if prompt in seen else 0))",
        "found.append(self.tokens[row])",
        (f"{SHARED}test_the_bound_counts_a_shared_prompt_once",),
    ),
    Mutant(
        "the first token of a response is predicted by the token before its own",
        "places[row, :start] = places[first, :start]",
        "places[row, :start] = end - 1",
        (f"{SHARED}test_rows_with_equal_prompts_have_it_once_among_the_tokens",),
    ),
    Mutant(
        "a prompt learns nothing from the responses that share it",
        "if span.before_begin == span.before_end:",
        "if span.begin >= 0:",
        (f"{SHARED}test_the_students_gradients_are_those_of_whole_rows",),
    ),
    Mutant(
        "the last layer leaves out what predicts a response's first token",
        "is_read[read] = True",
        "is_read[read + 1] = True",
        (f"{SHARED}test_the_students_gradients_are_those_of_whole_rows",),
    ),
    Mutant(
        "the last layer computes tokens that nobody reads",
        "is_cut = ends_where_read(unwrapped(self._chunks[-1]))",
        "is_cut = False",
        (f"{SHARED}test_the_last_layer_computes_what_is_read",),
    ),
    Mutant(
        "tokens of the last layer look past themselves",
        "mask.triu(num_keys - num_queries + 1)",
        "mask.triu(num_keys - num_queries + 2)",
        (
            "tests/unit/models/test_attention.py::"
            "test_a_sequence_attends_to_the_tokens_that_it_goes_on_from",
        ),
    ),
)

SKIP_MUTANTS = (
    Mutant(
        "a step whose numbers are not finite is taken",
        "is_skipped = not self._is_finite_everywhere(output, grad_norm)",
        "is_skipped = False",
        SKIPPED,
    ),
    Mutant(
        "a skipped step moves the learning rate",
        "        if not is_skipped:\n            self.schedule.step()\n",
        "        self.schedule.step()\n        if not is_skipped:\n",
        SKIPPED,
    ),
    Mutant(
        "a score that is not finite does not skip the step",
        "all(map(math.isfinite, numbers)) and bool(torch.isfinite(output.rows).all())",
        "all(map(math.isfinite, numbers))",
        SKIPPED,
        excuse="The gradient norm sees such a row, too, even if it does not train: its gradient is "
        "0 times a number that is not finite. All that is left is a score that overflows in its "
        "very last product.",
    ),
    Mutant(
        "max_skipped_steps is ignored",
        "    if limit and count >= limit:\n",
        "    if False:\n",
        STOPS,
    ),
    Mutant(
        "steps that were taken between skipped ones count among them",
        "run.skips_in_a_row[name] = 0\n",
        "pass\n",
        ("tests/unit/stages/test_skipped_steps.py",),
    ),
    Mutant(
        "scoring between skipped steps counts as a step that was taken",
        'if "skipped_steps" in output.metrics:',
        "if True:",
        ("tests/unit/stages/test_skipped_steps.py",),
    ),
    Mutant(
        "a skipped step of the student counts as new weights",
        "run.progress.weights_version += not learned.is_skipped",
        "run.progress.weights_version += 1",
        ("tests/unit/stages/test_skipped_steps.py",),
    ),
)

ADAMW_MUTANTS = (
    Mutant("clip_grad is ignored", "clip_grad=config.clip_grad,", "clip_grad=0.0,", ADAMW),
    Mutant(
        "gradients are clipped to twice the bound",
        "clip_grad=config.clip_grad,",
        "clip_grad=2 * config.clip_grad,",
        ADAMW,
    ),
    Mutant(
        "weight_decay is ignored",
        "start_wd=config.weight_decay,\n            end_wd=config.weight_decay,",
        "start_wd=0.0,\n            end_wd=0.0,",
        ADAMW,
    ),
    Mutant(
        "norms and biases decay",
        'group["max_lr"], group["min_lr"] = self._lr, min_lr',
        'group["max_lr"], group["min_lr"], group["wd_mult"] = self._lr, min_lr, 1.0',
        DECAY,
    ),
    Mutant(
        "weight decay is part of the gradient",
        'optimizer="adam",',
        'optimizer="adam",\n        decoupled_weight_decay=False,',
        ADAMW,
    ),
    Mutant(
        "adam_beta1 is ignored",
        "adam_beta1=config.adam_beta1,",
        "adam_beta1=0.9,",
        oracle("as published, with everything uneven"),
    ),
    Mutant(
        "the second moment decays as fast as the first",
        "adam_beta2=config.adam_beta2,",
        "adam_beta2=config.adam_beta1,",
        ADAMW,
    ),
    Mutant(
        "the epsilon of AdamW is 1e-6",
        'optimizer="adam",',
        'optimizer="adam",\n        adam_eps=1e-6,',
        ADAMW,
    ),
    Mutant(
        "the rate of a step is set after it",
        "self.schedule.step()\n            clip_and_update(self._optimizer, grad_norm)",
        "clip_and_update(self._optimizer, grad_norm)\n            self.schedule.step()",
        WARM_UP + oracle("as published, with everything uneven"),
    ),
    Mutant(
        "the warm-up of the rate is left out",
        "lr_warmup_steps=config.lr_warmup_steps,",
        "lr_warmup_steps=0,",
        WARM_UP,
    ),
    Mutant(
        "the cosine takes twice the steps of the stage",
        "lr_decay_steps=max(self._total_steps, config.lr_warmup_steps + 1),",
        "lr_decay_steps=max(2 * self._total_steps, config.lr_warmup_steps + 1),",
        (f"{OPTIMIZER}test_a_cosine_ends_at_its_minimum",),
    ),
    Mutant(
        "min_lr is ignored",
        "        min_lr = min(config.min_lr, self._lr)\n",
        "        min_lr = 0.0\n",
        (f"{OPTIMIZER}test_a_cosine_ends_at_its_minimum",),
    ),
    Mutant(
        "a schedule that is resumed begins at its first step",
        "self._scheduler = self._at(num_steps)",
        "self._scheduler = self._at(0)",
        (f"{OPTIMIZER}test_a_schedule_goes_on_where_it_was",),
    ),
    Mutant(
        "forgetting the moments leaves them",
        "        part.state.clear()\n",
        "        pass\n",
        RESET,
    ),
)

MEMORY_MUTANTS = (
    Mutant(
        "the reference's weights stay in the student",
        "            weights.copy_in()\n",
        "            pass\n",
        (f"{STATE}test_the_reference_computes_with_its_own_weights",),
    ),
    Mutant(
        "borrowing weights undoes the update before",
        "        self.wake()\n        self.memory.note_change()\n        for chunk",
        "        self.wake()\n        for chunk",
        in_stages("test_kl_to_the_stage_start_begins_at_zero_and_grows"),
    ),
    Mutant(
        "restored weights are overwritten by the float32 ones of before",
        "_(host)\n        self.optimizer_to_write().reload_model_params()\n",
        "_(host)\n",
        (f"{STATE}test_restored_weights_are_those_of_the_snapshot",),
    ),
    Mutant(
        "loaded weights are overwritten by the float32 ones of before",
        "source)\n        self.optimizer_to_write().reload_model_params()\n",
        "source)\n",
        (f"{STATE}test_loaded_weights_are_trained_from",),
    ),
    Mutant(
        "a snapshot changes with the student",
        "return [to_host(parameter) for parameter in self._parameters()]",
        "return [parameter.detach() for parameter in self._parameters()]",
        (f"{STATE}test_a_swap_lends_the_weights_and_gives_them_back",),
    ),
)
