"""``megatron-gad evaluate``: students answer prompts, and the answers are measured and judged."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm.contrib.logging import logging_redirect_tqdm

from megatron_gad.data.forms import with_system
from megatron_gad.environment import ENDPOINT_KEY, environment_variable
from megatron_gad.errors import BAD_INPUT, FAILED, INTERRUPTED
from megatron_gad.evaluation.answers import Answered
from megatron_gad.evaluation.instructions.accuracy import instruction_accuracy, read_instructions
from megatron_gad.evaluation.items import Item, read_items
from megatron_gad.evaluation.judge.calls import Judge
from megatron_gad.evaluation.judge.prompt_files import JudgePrompts, conversation_text
from megatron_gad.evaluation.measures import (
    TEACHER_ROW,
    Measured,
    measure,
    named_generator,
    tell_apart,
)
from megatron_gad.evaluation.options import TEACHER, EvaluateOptions
from megatron_gad.evaluation.plot import draw_lengths
from megatron_gad.evaluation.record_file import RecordFile
from megatron_gad.evaluation.results import gather, judge_totals
from megatron_gad.evaluation.students import Student, answers_of, find_students
from megatron_gad.evaluation.table import ANSWERS_FILE, RESULTS_FILE, page
from megatron_gad.evaluation.verdicts import Answers, Court, add_preferences, add_ratings
from megatron_gad.files import replace_lines, replace_text, to_json

logger = logging.getLogger(__name__)

PAGE, PLOT = "evaluation.md", "length.png"


def main(argv: Sequence[str], program: str = "megatron-gad evaluate") -> int:
    """Evaluate, print the page, and return the exit status.

    0: everything was measured. 1: the judge did not answer everything. 2: bad input. 130: Ctrl-C.
    """
    options = tyro.cli(EvaluateOptions, args=argv, prog=program)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("megatron_gad").setLevel(logging.INFO)
    try:
        with logging_redirect_tqdm():
            results = evaluate(options)
    except (ValueError, OSError) as error:
        logger.error("%s", error)
        return BAD_INPUT
    except KeyboardInterrupt:
        logger.error("interrupted; the same command goes on from what %s holds", options.out)
        return INTERRUPTED
    sys.stdout.write(page(results))
    return FAILED if results["judge"] and results["judge"]["num_unanswered"] else 0


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Return the results, which are in ``evaluation.json`` of the folder as well.

    Raises:
        ValueError: an option, a prompt file or a student that cannot be used.
    """
    options.check()
    prompts = JudgePrompts(options.endpoint.judge_prompts)
    items = read_items(
        options.prompts, options.prompt_column, options.teacher_column, options.num_prompts
    )
    options.out.mkdir(parents=True, exist_ok=True)
    students = find_students(options.students, options.out)
    names = [TEACHER, *(each.name for each in students)]
    if options.endpoint.against not in names:
        raise ValueError(f"against = {options.endpoint.against!r}: use one of {', '.join(names)}")
    key = _key(options.student_key_env) if any(each.url for each in students) else ""
    answers = {each.name: answers_of(each, items, options, key, "answers") for each in students}
    generator = named_generator(options.seed)
    measured = {name: measure(items, given) for name, given in answers.items()}
    for student in students:
        found = measured[student.name]
        if options.discriminator:
            _add_discriminators(found, items, answers[student.name], generator("discriminator"))
        if options.likelihood and student.folder is not None:
            _add_likelihood(found, items, student.folder, options, generator("likelihood"))
        if options.instructions:
            _add_instructions(found, student, options, key)
    _add_teacher(items, measured)
    with ExitStack() as stack:
        judge = _open_judge(options, stack)
        if judge is not None:
            court = Court(judge, prompts, options.endpoint.against)
            _judge(court, options, items, answers, measured)
        totals = judge_totals(judge)
    results = {
        "num_prompts": len(items),
        "against": options.endpoint.against,
        **gather(students, measured, options.seed),
        "judge": totals,
    }
    _write(options.out, results, measured)
    _write_answers(options.out, items, answers)
    return results


def _key(name: str) -> str:
    key = environment_variable(name)
    if not key and name != ENDPOINT_KEY:
        raise ValueError(f"{name} is not set in the environment; put the endpoint's key there")
    return key


def _open_judge(options: EvaluateOptions, stack: ExitStack) -> Judge | None:
    endpoint = options.endpoint
    if not endpoint.judge_url:
        return None
    kept = stack.enter_context(RecordFile(options.out / "judge.jsonl"))
    target = endpoint.judge(_key(endpoint.judge_key_env))
    return Judge(kept, target, endpoint.patience, endpoint.limits, options.show_progress)


def _judge(
    court: Court,
    options: EvaluateOptions,
    items: Sequence[Item],
    answers: Answers,
    measured: Mapping[str, Measured],
) -> None:
    if "rating" in options.endpoint.protocols:
        add_ratings(court, items, answers, measured)
    if "pairwise" in options.endpoint.protocols:
        generator = named_generator(options.seed)("win")
        add_preferences(court, items, answers, measured, generator)


def _add_discriminators(
    found: Measured,
    items: Sequence[Item],
    answers: Sequence[Sequence[Answered]],
    generator: np.random.Generator,
) -> None:
    aucs = tell_apart(items, answers, generator)
    if isinstance(aucs, str):
        found.flags.append(f"no AUC against the teacher: {aucs}")
        return
    found.intervals |= {
        "auc_text": aucs.text,
        "auc_length": aucs.length,
        "auc_format": aucs.format,
    }


def _add_likelihood(
    found: Measured,
    items: Sequence[Item],
    folder: Path,
    options: EvaluateOptions,
    generator: np.random.Generator,
) -> None:
    # Imports transformers' models, which takes seconds, and which only this needs.
    from megatron_gad.evaluation.likelihood import likelihoods, per_unit  # noqa: PLC0415

    taught = [item for item in items if item.teacher]
    if not taught:
        found.flags.append("no likelihood: the teacher answered no prompt")
        return
    each = likelihoods(
        folder,
        [with_system(item.messages, options.system_prompt) for item in taught],
        [item.teacher[0].text for item in taught],
        options.max_tokens,
        [item.teacher[0].was_cut for item in taught],
        options.template_arguments,
    )
    found.intervals["nats_per_token"] = per_unit(each, generator)
    found.intervals["nats_per_byte"] = per_unit(each, generator, "num_bytes")


def _add_instructions(
    found: Measured, student: Student, options: EvaluateOptions, key: str
) -> None:
    instructions = read_instructions(options.instructions)
    items = [Item(({"role": "user", "content": each.prompt},)) for each in instructions]
    try:
        answers = answers_of(student, items, options, key, "instructions")
    except ValueError as error:
        if not student.file:
            raise
        found.flags.append(f"instructions were not answered: {error}")
        return
    accuracy = instruction_accuracy(instructions, [each[0].text for each in answers])
    found.per_prompt["instructions_strict"] = np.array(accuracy.each_strict, np.float64)
    found.per_prompt["instructions_loose"] = np.array(accuracy.each_loose, np.float64)
    found.intervals |= {f"instructions/{name}": i for name, i in accuracy.by_kind.items()}


def _add_teacher(items: Sequence[Item], measured: dict[str, Measured]) -> None:
    """Measure the teacher's answers by themselves, for comparison."""
    taught = [item for item in items if item.teacher]
    if taught:
        alone = [Item(item.messages) for item in taught]
        measured[TEACHER_ROW] = measure(alone, [item.teacher for item in taught])


def _write(out: Path, results: dict[str, Any], measured: Mapping[str, Measured]) -> None:
    plain = json.loads(to_json(results))
    replace_text(out / RESULTS_FILE, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
    replace_text(out / PAGE, page(results))
    draw_lengths(measured, out / PLOT)


def _write_answers(out: Path, items: Sequence[Item], answers: Answers) -> None:
    """Write who answered what, prompt by prompt, to be read side by side."""
    rows = (
        {
            "prompt": conversation_text(item.messages),
            "teacher": [each.text for each in item.teacher],
            "students": {name: [a.text for a in given[n]] for name, given in answers.items()},
        }
        for n, item in enumerate(items)
    )
    replace_lines(out / ANSWERS_FILE, [to_json(row) for row in rows])
