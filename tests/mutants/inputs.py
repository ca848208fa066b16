"""Faults in what is found of models and data before a run, and in how it is read."""

from tests.mutants.mutant import Mutant

CHECKS = "tests/unit/checks/"
TOKENIZER = (f"{CHECKS}test_tokenizer.py",)
WEIGHTS = (f"{CHECKS}test_weights.py",)
TEMPLATE = (f"{CHECKS}test_template.py", "tests/unit/data/test_template.py")
CACHE = ("tests/unit/data/test_cache.py",)
MARKS = ("tests/unit/data/test_marks.py",)
FORMS = ("tests/unit/data/test_forms.py",)
OWN = ("tests/unit/stages/test_own_tokenizer.py",)
PROMPTS = ("tests/distributed/test_prompts.py",)
FINDINGS = ("tests/unit/tools/test_findings.py",)
COSTS = ("tests/unit/data/teacher/test_settings.py",)

INPUT_MUTANTS = (
    Mutant(
        "data.weights is ignored",
        "if turn < weights.get(file.name, 1):",
        "if turn < 1:",
        ("tests/unit/data/test_files.py",),
    ),
    Mutant(
        "one row too few of the embedding passes",
        "if num_rows is not None and highest >= num_rows:",
        "if num_rows is not None and highest > num_rows:",
        TOKENIZER,
    ),
    Mutant(
        "the discriminator needs rows for the padding of the student's embedding",
        "if highest >= shape.vocab_size:",
        "if student.shape.vocab_size > shape.vocab_size:",
        TOKENIZER,
    ),
    Mutant(
        "a discriminator with its own ids reads the student's",
        "if ids not in readings:",
        "if _text(discriminator, readings[0]) != text:",
        TOKENIZER,
    ),
    Mutant(
        "the discriminator's own text is not cut where the student's is",
        "_equally_cut(scorer.encode_responses(texts, was_cut), scorer.cut_response)",
        "_equally_cut(scorer.encode_responses(texts), scorer.cut_response)",
        OWN,
    ),
    Mutant(
        "prompts too long for the discriminator's tokenizer are kept",
        "if ids is not None and own is not None",
        "if ids is not None",
        OWN,
    ),
    Mutant(
        "a discriminator with a tokenizer of its own is exported with the student's",
        'if name == "discriminator" and run.codecs.scorer is not None:',
        'if name == "student" and run.codecs.scorer is not None:',
        OWN,
    ),
    Mutant(
        "an infinite weight counts as finite",
        "not (finite := torch.isfinite(value)).all()",
        "not (finite := ~torch.isnan(value)).all()",
        WEIGHTS,
    ),
    Mutant(
        "an output layer that is not the embedding passes as tied",
        "if not torch.equal(rows[0].float(), rows[1].float()):",
        "if rows[0].shape != rows[1].shape:",
        WEIGHTS,
    ),
    Mutant(
        "prompts that were kept stay when the discriminator's tokenizer changes",
        "for folder in codecs.folders\n",
        "for folder in codecs.folders[:1]\n",
        CACHE,
    ),
    Mutant(
        "data of the Hub is read anew at every start",
        "    files: list[Path] = []\n    if not path.startswith(HUB):",
        "    files: list[Path] = []\n    if path.startswith(HUB):\n        return None\n    else:",
        CACHE,
    ),
    Mutant(
        "the other ranks are not told what the first one found",
        '        store.set(ANSWER, str(error).encode("utf-8", "backslashreplace").decode())\n',
        '        store.set(ANSWER, "")\n',
        PROMPTS,
    ),
    Mutant(
        "the planner passes rows that cannot be read",
        "        return [str(error)], None",
        "        return [], None",
        FINDINGS,
    ),
    Mutant(
        "answers in flight are not paid for",
        "total = self.cost + self._reserved + self._expected(most)",
        "total = self.cost + self._expected(most)",
        COSTS,
    ),
    Mutant(
        "a second start reads, and clears, before it has the run directory",
        "            lock.take()\n            return read_all_rows(config, codecs)",
        "            return read_all_rows(config, codecs)",
        PROMPTS,
    ),
    Mutant(
        "every rank reads little data for itself",
        "found = ask_first_rank(parallel, read_by_first_rank)",
        "found = read_by_first_rank()",
        PROMPTS,
    ),
    Mutant(
        "what the discriminator's tokenizer cuts goes untold",
        "if num_cut > MARKED_SHARE * len(sample):",
        "if num_cut > len(sample):",
        MARKS,
    ),
    Mutant(
        "weights in half precision go untold",
        "    if types[HALF]:",
        "    if types[HALF] == types.total():",
        WEIGHTS,
    ),
    Mutant(
        "the turns of a conversation are as many answers",
        '    if all(turn["role"] == "assistant" for turn in turns):',
        "    if turns:",
        FORMS,
    ),
    Mutant(
        "the template without tools is taken for tools",
        "name = WITH_TOOLS if has_tools and WITH_TOOLS in self._texts else DEFAULT",
        "name = DEFAULT",
        TEMPLATE,
    ),
    Mutant(
        "an end of generation_config.json that is no token passes",
        "or not 0 <= each < num_ids]",
        "or not 0 <= each <= num_ids]",
        TOKENIZER,
    ),
)
