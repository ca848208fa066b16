"""Faults between the files and the batches: order, shares, masks, text and tokens."""

from tests.mutants.mutant import Mutant, in_settings, oracle

UNIT = "tests/unit/data/"
ORDER = (f"{UNIT}test_order.py",)
BALANCE = (f"{UNIT}test_balance.py",)
BATCHING = (f"{UNIT}test_batching.py",)
CHAT = (f"{UNIT}test_chat.py",)
DATASET = (f"{UNIT}test_dataset.py",)
FILES = (f"{UNIT}test_files.py",)
MARKS = (f"{UNIT}test_marks.py",)
FORMS = (f"{UNIT}test_forms.py",)
REASONING = (f"{UNIT}test_reasoning.py",)
SAMPLER = ("tests/unit/runtime/test_sampler.py",)

ORDER_MUTANTS = (
    Mutant(
        "every epoch has the same order",
        'f"{self._seed}/{self._epoch}"',
        'f"{self._seed}"',
        ORDER,
    ),
    Mutant(
        "the order does not depend on the seed",
        'f"{self._seed}/{self._epoch}"',
        'f"{self._epoch}"',
        ORDER,
    ),
    Mutant(
        "data.shuffle = false is ignored",
        "PromptOrder(rows, seed, self._config.data.shuffle)",
        "PromptOrder(rows, seed, True)",
        oracle("as published, with everything uneven"),
    ),
    Mutant(
        "the order of the data does not depend on the run's seed",
        "rows, seed = len(self.prompts), self._config.seed + 1000 * stage_index",
        "rows, seed = len(self.prompts), 1000 * stage_index",
        in_settings("test_the_orders_of_a_stage_follow_from_seed_and_stage"),
    ),
    Mutant(
        "all stages take the data in the same order",
        "self._config.seed + 1000 * stage_index",
        "self._config.seed",
        in_settings("test_the_orders_of_a_stage_follow_from_seed_and_stage"),
    ),
    Mutant(
        "a resumed order begins its epoch anew",
        'self._position = state["position"] + ',
        "self._position = 0 * ",
        ORDER,
    ),
    Mutant(
        "a resumed order is in its first epoch",
        'self._epoch = state["epoch"]',
        "self._epoch = 0",
        ORDER,
    ),
    Mutant(
        "a row may come twice at once at the end of an epoch",
        "barred.add(row)",
        "barred.discard(None)",
        ORDER,
    ),
    Mutant(
        "rows that were put off are lost",
        "self._put_off = put_off + self._put_off",
        "self._put_off = self._put_off[:0]",
        ORDER,
    ),
    Mutant(
        "rows that were put off are lost in a resume",
        'self._put_off = list(state.get("put_off", ()))',
        "self._put_off = []",
        ORDER,
    ),
    Mutant(
        "equal texts cost the discriminator as much as different ones",
        "texts = set(responses)",
        "texts = list(responses)",
        BALANCE,
    ),
    Mutant(
        "shares of equal cost drop what does not divide",
        "return [sorted(share) for share in shares]",
        "return [sorted(share)[: len(costs) // num_shares] for share in shares]",
        BALANCE,
    ),
    Mutant(
        "shares lose the order of their items",
        "return [sorted(share) for share in shares]",
        "return shares",
        BALANCE,
    ),
    Mutant(
        "a step trains on half of its prompts",
        "return [self.prompts[row] for row in self._parallel.share(rows)]",
        "return [self.prompts[row] for row in self._parallel.share(rows)[: len(rows) // 2]]",
        oracle("as published, with everything uneven"),
    ),
    Mutant(
        "the number of a row counts usable rows only",
        "index=row.index,",
        "index=row.index - counts['num_dropped_long_prompt'],",
        DATASET,
    ),
)

MASK_MUTANTS = (
    Mutant(
        "the first token of a response does not train",
        "response_mask = (position >= starts[:, None])",
        "response_mask = (position > starts[:, None])",
        BATCHING,
    ),
    Mutant(
        "the last token of the prompt trains",
        "response_mask = (position >= starts[:, None])",
        "response_mask = (position >= starts[:, None] - 1)",
        BATCHING,
    ),
    Mutant(
        "the end token does not train",
        "& (position < lengths[:, None])",
        "& (position < lengths[:, None] - 1)",
        BATCHING,
    ),
    Mutant(
        "the mask leaves out tokens that equal the padding id",
        "& (position < lengths[:, None])",
        "& (tokens != 0)",
        BATCHING,
    ),
    Mutant(
        "the engine's log-probabilities stand one token early",
        "logprobs[b, start : start + len(ids)] = ",
        "logprobs[b, start - 1 : start - 1 + len(ids)] = ",
        BATCHING,
    ),
    Mutant(
        "the discriminator reads the sampled ids and not those of the text",
        "[prompt.ids, prompt.teacher_ids, *(rollout.text_ids for",
        "[prompt.ids, prompt.teacher_ids, *(rollout.ids for",
        BATCHING,
    ),
    Mutant(
        "the student trains on the ids of the text and not on those it sampled",
        "rows = [(group.prompt.ids, rollout.ids) for group",
        "rows = [(group.prompt.ids, rollout.text_ids) for group",
        BATCHING,
    ),
    Mutant(
        "one rollout too few trains the discriminator",
        "(torch.arange(1 + group_size) <= (num_trained or group_size))",
        "(torch.arange(1 + group_size) < (num_trained or group_size))",
        BATCHING,
    ),
    Mutant(
        "the microbatch that only fills up the number trains",
        'masks = ("response_mask", "trained", "score_gradients")',
        'masks = ("score_gradients",)',
        BATCHING,
    ),
    Mutant(
        "rows of a microbatch are taken from the beginning of the batch",
        "taken = {name: value[index] for name, value in _tensors(batch).items()}",
        "taken = {name: value[: len(index)] for name, value in _tensors(batch).items()}",
        BATCHING,
    ),
)

TEXT_MUTANTS = (
    Mutant(
        "rollouts reach the discriminator without their end token",
        'hit_cap=rollout.finish_reason == "length"',
        "hit_cap=True",
        SAMPLER,
    ),
    Mutant(
        "a rollout that hit the cap gets an end token",
        'hit_cap=rollout.finish_reason == "length"',
        "hit_cap=False",
        SAMPLER,
    ),
    Mutant(
        "a text of the cap's length carries an end token beyond it",
        "if was_cut[number] or len(ids) >= cap]",
        "if was_cut[number] or len(ids) > cap]",
        CHAT,
    ),
    Mutant(
        "the end token stays in the text",
        "return self._decode(ids[:-1] if len(ids) > 0 and ids[-1] in self.stop_ids else ids)",
        "return self._decode(ids)",
        CHAT,
    ),
    Mutant(
        "only the template's own end token is taken off",
        "ids[-1] in self.stop_ids else ids",
        "ids[-1] == self.end_id else ids",
        CHAT,
    ),
    Mutant(
        "control tokens inside a response vanish from its text",
        "skip_special_tokens=False",
        "skip_special_tokens=True",
        CHAT,
    ),
    Mutant(
        "control tokens spelled out in a response become control tokens",
        "self._leading_ids(texts, cap, split_special=True)",
        "self._leading_ids(texts, cap, split_special=False)",
        CHAT,
    ),
    Mutant(
        "a cut may leave a part of a character",
        "texts = [self._decode(settled[n][:limit]).rstrip(REPLACEMENT) for n in moving]",
        "texts = [self._decode(settled[n][:limit]) for n in moving]",
        CHAT,
    ),
    Mutant(
        "a cut text keeps the ids that it had as a part of the whole",
        "for _ in range(SETTLING_ROUNDS):",
        "for _ in range(0):",
        CHAT,
    ),
    Mutant(
        "the rest of a character moves the cut of a rollout",
        "texts = [x.rstrip(REPLACEMENT) if c else x for",
        "texts = [x for",
        CHAT,
    ),
    Mutant(
        "cut texts of a group keep their lengths",
        "if truncated and len(ids) > limit else ids",
        "if len(ids) < 0 else ids",
        SAMPLER,
    ),
    Mutant(
        "the template writes the date of today",
        "clock + text if CLOCK in text else text for name",
        "text for name",
        CHAT,
    ),
    Mutant(
        "prompts end without the header of the assistant",
        "return self.template.render(messages, tools)",
        "return self.template.render(messages, tools, False)",
        CHAT,
    ),
    Mutant(
        "prompts over the cap are cut and not dropped",
        "self._shared(ids) if len(ids) <= limit else None for ids in rows",
        "self._shared(ids[:limit]) for ids in rows",
        DATASET,
    ),
    Mutant(
        "further stop ids of generation_config.json are ignored",
        "return cls(tokenizer, *caps, stop_ids, chat_template_kwargs, reasoning)",
        "return cls(tokenizer, *caps, (), chat_template_kwargs, reasoning)",
        CHAT,
    ),
    Mutant(
        "reasoning that is to be stripped reaches the discriminator",
        "texts = [self.visible(text) for text in texts]",
        "texts = list(texts)",
        REASONING,
    ),
    Mutant(
        "kept reasoning repeats the tag that the prompt wrote",
        "return text.lstrip().removeprefix(tags.open).removeprefix(space) if is_opened else text",
        "return text",
        REASONING,
    ),
    Mutant(
        "an empty rollout cuts every cut text of its group to nothing",
        "for ids, truncated in responses if truncated and ids)",
        "for ids, truncated in responses if truncated)",
        SAMPLER,
    ),
    Mutant(
        "an answer that was cut where it comes from gets an end token",
        "[row.was_cut for row, _, _ in kept]",
        "[False for row, _, _ in kept]",
        FORMS,
    ),
    Mutant(
        "an answer that the endpoint filtered is trained on",
        'if answer.ending == "failed":',
        'if answer.ending == "":',
        FORMS,
    ),
    Mutant(
        "a conversation that ends with the answer keeps it in the prompt",
        "messages, answer = messages[:-1], messages[-1]",
        "answer = messages[-1]",
        FORMS,
    ),
    Mutant(
        "a token that ends inside a character has the rest of it for its text",
        "if text.endswith(REPLACEMENT) and end < len(own):",
        "if False:",
        ("tests/unit/data/test_chat.py",),
    ),
    Mutant(
        "a mark of every response is not told",
        "if len(found) > share * len(sample):",
        "if len(sample) > len(found) > share * len(sample):",
        MARKS,
    ),
    Mutant(
        "a folder's files for testing are trained on",
        "used, left_out = (tests, others) if held_out and tests else (others, tests)",
        "used, left_out = (tests, others) if held_out and tests else (files, [])",
        FILES,
    ),
)
