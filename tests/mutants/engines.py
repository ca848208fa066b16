"""Faults in sampling: draws, filters, ends, caches, weights; and in comparing with the trainer."""

from tests.mutants.mutant import Mutant, in_settings, oracle

PUBLISHED = oracle("as published, with everything uneven")
SAMPLING = ("tests/unit/engines/test_sampling.py",)
CACHE = ("tests/unit/engines/test_kv_cache.py",)
EMBEDDED = "tests/engines/test_embedded.py::"
PLAIN = (f"{EMBEDDED}test_rollout_logprobs_equal_a_plain_forward",)
STOPS = (f"{EMBEDDED}test_the_stop_id_is_kept_as_the_last_and_the_cap_cuts_without_one",)
ROOM = (f"{EMBEDDED}test_the_room_for_tokens_does_not_change_the_text",)
JOINING = (f"{EMBEDDED}test_rows_that_have_ended_make_room_at_once_and_a_prompt_is_read_once",)
SHARING = ("tests/unit/engines/sglang/test_sharing.py",)
REQUESTS = ("tests/unit/engines/sglang/test_requests.py",)
AGREEMENT = ("tests/unit/stages/test_agreement.py",)
SAMPLER = ("tests/unit/runtime/test_sampler.py",)

DRAW_MUTANTS = (
    Mutant(
        "the embedded engine has no temperature",
        "torch.log_softmax(logits.float() / sampling.temperature, dim=-1)",
        "torch.log_softmax(logits.float(), dim=-1)",
        SAMPLING,
    ),
    Mutant(
        "all samples of a prompt have the same seed",
        "Request(prompt.ids, request_seed(sampling.seed, prompt.index, sample))",
        "Request(prompt.ids, request_seed(sampling.seed, prompt.index, 0))",
        (f"{EMBEDDED}test_samples_differ_and_repeat_with_the_seed",),
    ),
    Mutant(
        "a stop id as the last allowed token is a cut",
        'return "stop" if ids[-1] in stop_ids else reported',
        "return reported",
        REQUESTS,
    ),
    Mutant(
        "a server draws all samples of a prompt with the same seed",
        "seed = request_seed(sampling.seed, prompt.index, sample)",
        "seed = request_seed(sampling.seed, prompt.index, 0)",
        REQUESTS,
    ),
    Mutant(
        "the seed of a response does not depend on its prompt",
        'text = f"{seed}/{prompt_index}/{sample}".encode()',
        'text = f"{seed}/{sample}".encode()',
        ("tests/unit/engines/test_request_seed.py",),
    ),
    Mutant(
        "every step draws with the same seed",
        "seed=request_seed(config.seed, iteration, draw),",
        "seed=request_seed(config.seed, 0, draw),",
        in_settings("test_sampling_takes_every_setting_of_the_configuration"),
    ),
    Mutant(
        "extra steps draw with the seed of the step's groups",
        "SamplingConfig.of_step(run.config, iteration, 1, draw=1)",
        "SamplingConfig.of_step(run.config, iteration, 1, draw=0)",
        (
            "tests/unit/stages/test_overlap.py::test_it_equals_a_schedule_by_hand_that_samples_one_step_early",
        ),
    ),
)

DECODING_MUTANTS = (
    Mutant(
        "the stop id is cut off",
        "return Response(tuple(row.ids), tuple(row.logprobs), reason)",
        "return Response(tuple(row.ids[:-1]), tuple(row.logprobs[:-1]), reason)",
        STOPS,
    ),
    Mutant(
        "every response is said to have stopped",
        'reason = "stop" if row.ids[-1] in sampling.stop_ids else "length"',
        'reason = "stop"',
        STOPS,
    ),
    Mutant(
        "a step writes the log-probabilities of other rows",
        "zip(rows, ids.tolist(), logprobs.tolist(), strict=True)",
        "zip(rows, ids.tolist(), logprobs.flip(0).tolist(), strict=True)",
        PLAIN,
    ),
    Mutant(
        "blocks that are packed leave what they hold behind",
        "layer[target] = layer[source]",
        "layer[target] = layer[target]",
        CACHE,
    ),
    Mutant(
        "responses read the prompts of others",
        "of_prompts[row.prompt.number, place] = index",
        "of_prompts[len(schedule.prompts) - 1 - row.prompt.number, place] = index",
        PLAIN,
    ),
    Mutant(
        "tokens attend to the empty places of a block",
        "is_empty = torch.arange(BLOCK_TOKENS, device=device) >= fill[:, None]",
        "is_empty = torch.arange(BLOCK_TOKENS, device=device) > 0 * fill[:, None] + BLOCK_TOKENS",
        PLAIN,
    ),
    Mutant(
        "the parts of a row's blocks are added without a common maximum",
        "sums *= (top - maxima[rows]).exp_()[..., None]",
        "sums *= 1",
        ("tests/unit/engines/test_paged_attention.py",),
    ),
    Mutant(
        "new tokens have the position of the one after",
        "len(row.prompt.ids) + len(row.ids) - 1,",
        "len(row.prompt.ids) + len(row.ids),",
        PLAIN,
    ),
    Mutant(
        "responses come back in the order in which they ended",
        "sorted(schedule.ended, key=lambda r: r.number)",
        "schedule.ended",
        (f"{EMBEDDED}test_order_and_other_prompts_do_not_change_the_text",),
    ),
    Mutant(
        "a response that waited again goes on behind another token",
        "ids = (*prompt.ids, *row.ids)",
        "ids = (*prompt.ids, *row.ids[:-1], row.ids[0])",
        ROOM,
    ),
    Mutant(
        "responses that wait begin when none is left that runs",
        "return room >= min(JOINING_SHARE * len(self.live), len(self.waiting))",
        "return not self.live",
        JOINING,
    ),
    Mutant(
        "a prompt is read once for each response",
        "            if not prompt.is_held:",
        "            if True:",
        JOINING,
    ),
    Mutant(
        "the cap is ignored and responses have one token less",
        "max_new_tokens=max_new_tokens or config.data.max_response_tokens,",
        "max_new_tokens=max_new_tokens or config.data.max_response_tokens - 1,",
        in_settings("test_sampling_takes_every_setting_of_the_configuration"),
    ),
)

SHARING_MUTANTS = (
    Mutant(
        "a rank whose requests are answered takes its servers from others",
        "(self._has_all_answers() and self._have_all_finished)",
        "self._has_all_answers()",
        SHARING,
    ),
    Mutant(
        "places that a rank never needs are lent to no other",
        "self._borrowing.places.lend(replica.name, places - own)",
        "self._borrowing.places.lend(replica.name, 0)",
        SHARING,
    ),
    Mutant(
        "ranks stay at a server that its owner brings back",
        "if places.is_withdrawn(url):",
        "if False:",
        SHARING,
    ),
)

WEIGHT_MUTANTS = (
    Mutant(
        "rollouts carry another version than that of their weights",
        "Rollout(r.ids, r.logprobs, r.finish_reason, self._weights_version)",
        "Rollout(r.ids, r.logprobs, r.finish_reason, 0)",
        (f"{EMBEDDED}test_new_weights_replace_the_old_and_their_version_is_on_every_rollout",),
    ),
    Mutant(
        "the engine keeps its first weights for ever",
        "if run.sampler.weights_version == version:",
        "if run.sampler.weights_version >= 0:",
        PUBLISHED,
    ),
    Mutant(
        "an answer from other weights is accepted",
        "if answered_version != str(version):",
        "if False:",
        REQUESTS,
    ),
    Mutant(
        "log-probabilities of other tokens are accepted",
        "if tuple(token for _, token in pairs) != ids or not ids:",
        "if not ids:",
        REQUESTS,
    ),
    Mutant(
        "a gap between engine and trainer stops nothing",
        "if bound and not gap.largest <= bound:",
        "if False:",
        AGREEMENT,
    ),
    Mutant(
        "a gap that is no number stops nothing",
        "if bound and not gap.largest <= bound:",
        "if bound and gap.largest > bound:",
        AGREEMENT,
    ),
    Mutant(
        "the gap is the mean over tokens and not the largest",
        "float(difference.max()) if len(difference)",
        "float(difference.mean()) if len(difference)",
        AGREEMENT,
    ),
    Mutant(
        "in bf16 the mean gap between engine and trainer stops nothing",
        "if not gap.mean <= allowed:",
        "if False:",
        AGREEMENT,
    ),
    Mutant(
        "weights that are missing in a swap stay as they were",
        'problems += [f"{name} is missing" for name in missing]',
        "problems += []",
        ("tests/unit/engines/test_hf_module.py",),
    ),
    Mutant(
        "a rollout of a server loses its last log-probability",
        "logprobs = tuple(logprob for logprob, _ in pairs)",
        "logprobs = tuple(logprob for logprob, _ in pairs[:-1])",
        REQUESTS,
    ),
)

NUMBER_MUTANTS = (
    Mutant(
        "a prompt's first response counts as one that had it in the cache",
        "cached_tokens=size * prompt.is_held)",
        "cached_tokens=size)",
        JOINING,
    ),
    Mutant(
        "a client that is closed goes on asking",
        "            self._is_closed = True\n        self.break_off()",
        "            pass\n        self.break_off()",
        ("tests/unit/engines/sglang/test_client.py",),
    ),
    Mutant(
        "the share of truncated responses counts those that stopped",
        '"response/truncated_share": (reasons["length"], count),',
        '"response/truncated_share": (reasons["stop"], count),',
        SAMPLER,
    ),
    Mutant(
        "the share of retokenised responses counts those that stayed",
        "changed = sum(not _holds(each.ids, each.text_ids) for each in rollouts)",
        "changed = sum(_holds(each.ids, each.text_ids) for each in rollouts)",
        SAMPLER,
    ),
    Mutant(
        "the mean length is the sum of lengths over prompts",
        "(sum(len(rollout.ids) for rollout in rollouts), count)",
        "(sum(len(rollout.ids) for rollout in rollouts), len(groups))",
        SAMPLER,
    ),
    Mutant(
        "metrics are sums over a batch and not means",
        "means = total[:, 0] / total[:, 1].clamp(min=1e-12)",
        "means = total[:, 0]",
        (
            "tests/unit/training/test_trainer_gradients.py::"
            "test_the_supervised_loss_is_the_cross_entropy_of_all_response_tokens",
        ),
    ),
    Mutant(
        "the trained tokens count one update of several",
        "tokens = sum(output.trained_tokens for output in outputs)",
        "tokens = outputs[0].trained_tokens",
        in_settings("test_the_trained_tokens_are_those_of_every_pass"),
    ),
    Mutant(
        "the trained tokens leave out the discriminator's extra steps",
        "float(sum(step.output.trained_tokens for step in models))",
        "float(sum(step.output.trained_tokens for step in (models[0], *models[len(judged) :])))",
        in_settings("test_the_trained_tokens_are_those_of_every_pass"),
    ),
)
