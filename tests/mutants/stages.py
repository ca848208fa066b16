"""Faults in what a step does: options that are lost on the way, turns in the wrong order."""

from tests.mutants.mutant import Mutant, in_settings, in_stages, oracle

WHOLE_RATIO = oracle("the ratio of whole responses, clipped")
CUT = oracle("means of values, no reward for length, nothing learned from what was cut")
MINIBATCHES = oracle("minibatches, gone through twice")
PAST = oracle("past groups, resumed")
DUAL = oracle("dr_grpo in full, clipped on both sides of a negative advantage")
PUBLISHED = oracle("as published, with everything uneven")
UPDATES = oracle("several updates of the student, clipped")
IN_REWARD = oracle("rloo, k1 in the reward")
SUMMED = oracle("summed scores, cross-entropy, dr_grpo, k2")

OPTION_MUTANTS = (
    Mutant(
        "the policy loss has no temperature",
        "output = run.student.train(part, loss, temperature)",
        "output = run.student.train(part, loss)",
        PUBLISHED,
    ),
    Mutant(
        "the reference has no temperature",
        "self.reference.logprobs(batch, self.config.rollout.temperature)",
        "self.reference.logprobs(batch, 1.0)",
        PUBLISHED,
    ),
    Mutant(
        "the KL of the reward has no temperature",
        "logprobs = run.student.logprobs(batch, temperature)\n        kl = ",
        "logprobs = run.student.logprobs(batch, 1.0)\n        kl = ",
        IN_REWARD,
    ),
    Mutant(
        "the comparison with the engine has no temperature",
        "logprobs = source.logprobs(batch, run.config.rollout.temperature)\n    gap = ",
        "logprobs = source.logprobs(batch, 1.0)\n    gap = ",
        PUBLISHED,
    ),
    Mutant(
        "the engine samples without a temperature",
        "temperature=config.rollout.temperature,",
        "temperature=1.0,",
        PUBLISHED,
    ),
    Mutant(
        "the teacher's responses are learned at the sampling temperature",
        "learned = run.student.train(batch, loss)\n",
        "learned = run.student.train(batch, loss, run.config.rollout.temperature)\n",
        PUBLISHED,
    ),
    Mutant(
        "gad.discriminator_loss is ignored",
        "judge(discriminator, pairs, kind, split_groups)",
        'judge(discriminator, pairs, "bradley_terry", split_groups)',
        SUMMED,
    ),
    Mutant(
        "gad.advantage is ignored",
        "group_advantages(rewarded.total_PG, self.config.gad.advantage)",
        'group_advantages(rewarded.total_PG, "grpo")',
        IN_REWARD,
    ),
    Mutant(
        "past groups do not come back from a checkpoint",
        'self.negatives.load(state.get("negatives", ()))',
        "pass",
        PAST,
    ),
    Mutant(
        "the groups that make room for past ones train as well",
        "trained[:, 1:] &= torch.tensor(is_trained)[:, None]",
        "pass",
        PAST,
    ),
    Mutant(
        "the oldest groups stay in the pool",
        "del self._past[: -self._size]",
        "del self._past[self._size :]",
        ("tests/unit/stages/test_negatives.py",),
    ),
    Mutant(
        "gad.mask_truncated is ignored",
        "is_cut_PG & gad.mask_truncated",
        "is_cut_PG & False",
        CUT,
    ),
    Mutant(
        "gad.length_correction is ignored",
        "if gad.length_correction:",
        "if False:",
        CUT,
    ),
    Mutant(
        "gad.policy_loss is ignored",
        "kind=gad.policy_loss,",
        'kind="grpo",',
        WHOLE_RATIO,
    ),
    Mutant(
        "gad.clip_range_high is ignored",
        "clip_range_high=gad.clip_range_high,",
        "clip_range_high=None,",
        WHOLE_RATIO,
    ),
    Mutant(
        "gad.dual_clip is ignored",
        "dual_clip=gad.dual_clip,",
        "dual_clip=0.0,",
        DUAL,
    ),
    Mutant(
        "gad.clip_range is ignored",
        "clip_range=gad.clip_range,",
        "clip_range=0.2,",
        UPDATES,
    ),
    Mutant(
        "gad.kl_coef is ignored",
        'kl_coef=gad.kl_coef if gad.kl_in == "loss" else 0.0,',
        'kl_coef=0.001 if gad.kl_in == "loss" else 0.0,',
        PUBLISHED,
    ),
    Mutant(
        "a KL in the reward is in the loss as well",
        'kl_coef=gad.kl_coef if gad.kl_in == "loss" else 0.0,',
        "kl_coef=gad.kl_coef,",
        oracle("k3 to the stage's start in the reward"),
    ),
    Mutant(
        "gad.kl_in is ignored: the KL is never in the reward",
        'if gad.kl_in == "reward" and batch.ref_logprobs is not None:',
        "if False:",
        in_stages("test_kl_in_the_reward_lowers_it_by_the_summed_estimate"),
    ),
    Mutant(
        "gad.kl_estimator is ignored in the loss",
        "kl_estimator=gad.kl_estimator,",
        'kl_estimator="k3",',
        SUMMED,
    ),
    Mutant(
        "gad.kl_estimator is ignored in the reward",
        "batch.response_mask, gad.kl_estimator)",
        'batch.response_mask, "k3")',
        IN_REWARD,
    ),
    Mutant(
        "gad.aggregation is ignored",
        "aggregation=gad.aggregation,",
        'aggregation="token_mean",',
        SUMMED,
    ),
    Mutant(
        "gad.tis_cap is ignored",
        "tis_cap=gad.tis_cap,",
        "tis_cap=0.0,",
        oracle("an engine that is off, truncated importance weights"),
    ),
    Mutant(
        "the reference follows the student",
        "self.reference.logprobs(batch, self.config.rollout.temperature)",
        "run.student.logprobs(batch, self.config.rollout.temperature)",
        in_stages("test_kl_to_the_stage_start_begins_at_zero_and_grows"),
    ),
)

REWARD_MUTANTS = (
    Mutant(
        "further groups come in the order in which they were sampled",
        "chain.from_iterable(parallel.gather_over_data(useful)), key=lambda each: each[:2]",
        "chain.from_iterable(parallel.gather_over_data(useful)), key=lambda each: 0",
        ("tests/unit/stages/test_resampling.py",),
    ),
    Mutant(
        "the student's batch has the reference of the groups that were replaced",
        "batch = self._with_reference(run, policy_batch(scored.groups))",
        "batch = self._with_reference(run, batch)",
        oracle("groups that differ in place of those that do not, resumed"),
    ),
    Mutant(
        "rewards are scores from after the discriminator's extra steps",
        "scored = self._score(run, batch, sampled.groups, judged.scores_PG)",
        "again_PG = judge_groups(run, sampled.groups).scores_PG\n"
        "        scored = self._score(run, batch, sampled.groups, again_PG)",
        PUBLISHED,
    ),
    Mutant(
        "the KL is added to the reward",
        "total_PG = total_PG - gad.kl_coef * ",
        "total_PG = total_PG + gad.kl_coef * ",
        in_stages("test_kl_in_the_reward_lowers_it_by_the_summed_estimate"),
    ),
    Mutant(
        "rewards pass through a sigmoid",
        "return Rewarded(scores_PG, ",
        "return Rewarded(scores_PG.sigmoid(), ",
        in_stages("test_rewards_are_the_raw_scores_from_before_the_update"),
    ),
    Mutant(
        "advantages are given to the rollouts of other prompts",
        "batch.with_advantages(scored.advantages_PG.flatten())",
        "batch.with_advantages(scored.advantages_PG.t().flatten())",
        PUBLISHED,
    ),
    Mutant(
        "later updates take the ratio to the update before and not to the sampling student",
        "old = output.rows if old is None else old",
        "old = output.rows",
        UPDATES,
    ),
    Mutant(
        "later updates take no ratio",
        "known = batch if old is None else batch.with_old_logprobs(old)",
        "known = batch",
        in_stages("test_several_updates_on_one_batch_move_the_ratio"),
    ),
    Mutant(
        "minibatches are cut in the order of rows, of which neighbours may be alike",
        "place % num_parts for place",
        "place * num_parts // len(order) for place",
        MINIBATCHES,
    ),
    Mutant(
        "the minibatches have no log-probabilities from before the first of them",
        "if len(parts) > 1 else None",
        "* 0 if len(parts) > 1 else None",
        MINIBATCHES,
    ),
)

TURN_MUTANTS = (
    Mutant(
        "the warm-up's student begins a step late",
        "self.train_student and step >= self.discriminator_only_steps",
        "self.train_student and step > self.discriminator_only_steps",
        in_stages("test_warmup_teaches_the_discriminator_alone_first"),
    ),
    Mutant(
        "the warm-up's student does not wait for the discriminator",
        "self.train_student and step >= self.discriminator_only_steps",
        "self.train_student",
        in_stages("test_warmup_teaches_the_discriminator_alone_first"),
    ),
    Mutant(
        "warmup.train_student is ignored",
        "self.train_student and step >= self.discriminator_only_steps",
        "step >= self.discriminator_only_steps",
        in_stages("test_warmup_can_leave_the_student_alone"),
    ),
    Mutant(
        "the discriminator's interval is counted from the next step",
        "discriminator_learns(run.progress.step_in_stage)",
        "discriminator_learns(run.progress.step_in_stage + 1)",
        in_stages("test_extra_steps_and_the_interval_set_how_often_the_discriminator_learns"),
    ),
    Mutant(
        "the discriminator learns in every step, whatever its interval",
        "self.discriminator_interval > 0 and step % self.discriminator_interval == 0",
        "self.discriminator_interval > 0",
        in_stages("test_extra_steps_and_the_interval_set_how_often_the_discriminator_learns"),
    ),
    Mutant(
        "a frozen discriminator learns",
        "self.discriminator_interval > 0 and step % self.discriminator_interval == 0",
        "step % max(1, self.discriminator_interval) == 0",
        in_stages("test_a_frozen_discriminator_scores_and_never_learns"),
    ),
    Mutant(
        "adversarial.discriminator_samples is ignored",
        "judge_groups(run, sampled.groups, learns, num_trained, practice, shows)",
        "judge_groups(run, sampled.groups, learns, 0, practice, shows)",
        PUBLISHED,
    ),
    Mutant(
        "tokens of a discriminator with its own tokenizer are told in the student's",
        "run.codecs.scorer or run.codecs.student",
        "run.codecs.student",
        ("tests/unit/stages/test_own_tokenizer.py",),
    ),
    Mutant(
        "the data ranks that read none of the tokens that are shown are not told of them",
        "shares = discriminator.parallel.gather_over_data(own)",
        "shares = [own]",
        ("tests/distributed/test_mixed_layouts.py",),
    ),
    Mutant(
        "extra steps take the prompts of the order that the step itself takes",
        "extra = self.extra_order.take(total, besides)",
        "extra = self.order.take(total, besides)",
        in_stages("test_extra_steps_have_prompts_of_their_own"),
    ),
    Mutant(
        "extra steps take prompts of the step's groups once more",
        "besides = rows if count + total <= len(self.prompts) else ()",
        "besides = ()",
        in_stages("test_no_step_has_a_prompt_twice_and_none_that_is_an_extra_one"),
    ),
    Mutant(
        "extra steps see the prompts of the step in the same order",
        "PromptOrder(rows, seed + 500, shuffle=True)",
        "PromptOrder(rows, seed, shuffle=True)",
        in_settings("test_the_orders_of_a_stage_follow_from_seed_and_stage"),
    ),
    Mutant(
        "every extra step trains on the samples of the first",
        "extra[i * size : (i + 1) * size]",
        "extra[:size]",
        oracle("more turns of the discriminator"),
    ),
)
