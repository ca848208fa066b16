"""Who answers: a model folder, a run, a checkpoint, a file of answers, or an endpoint."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

from tqdm import tqdm

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.rollout import RolloutConfig, SGLangConfig
from megatron_gad.data.conversation import Answer as Ended
from megatron_gad.data.forms import with_system
from megatron_gad.engines.asking.endpoint import Endpoint, Target
from megatron_gad.engines.asking.pool import Pool, Question
from megatron_gad.engines.asking.reply import Answer
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.sglang.site import ServerSite
from megatron_gad.evaluation.answers import Answered, Answerer
from megatron_gad.evaluation.items import Item, read_answers
from megatron_gad.evaluation.options import EvaluateOptions
from megatron_gad.evaluation.record_file import RecordFile, content_key
from megatron_gad.models.hf_headers import weight_files

logger = logging.getLogger(__name__)

# Prompts that are answered before the answers are written.
AT_ONCE = {"embedded": 32, "sglang": 512}
EXPORTED = "student_hf"


@dataclass(frozen=True)
class Student:
    """One who answers.

    name: different for every student; seeds of one arm have a number behind it.
    arm: the name that was given.
    folder: of a Hugging Face model. file: of answers, in ``column``. url, model: of an endpoint.
    """

    name: str
    arm: str
    folder: Path | None = None
    file: str = ""
    column: str = ""
    url: str = ""
    model: str = ""


def find_students(given: Sequence[str], out: Path) -> list[Student]:
    """Return who is meant by NAME=WHAT; a checkpoint is written below ``out`` as a model folder.

    Raises ValueError: something is none of what can answer.
    """
    pairs = [text.partition("=") for text in given]
    for name, sign, what in pairs:
        if not (name and sign and what) or "/" in name:
            raise ValueError(f"student {name + sign + what!r}: use NAME=WHAT")
    counts = Counter(name for name, _, _ in pairs)
    seen: Counter[str] = Counter()
    students: list[Student] = []
    for arm, _, what in pairs:
        seen[arm] += 1
        name = f"{arm}.{seen[arm]}" if counts[arm] > 1 else arm
        students.append(_find(name, arm, what, out))
    return students


def _find(name: str, arm: str, what: str, out: Path) -> Student:
    if what.startswith(("http://", "https://")):
        url, model = urldefrag(what)
        if not model:
            raise ValueError(f"student {name}: {what} names no model; use https://host/v1#MODEL")
        return Student(name, arm, url=url, model=model)
    path = Path(what)
    if path.is_dir():
        return Student(name, arm, folder=_model_folder(name, path, out))
    file, _, column = what.rpartition(":")
    if not path.is_file() and file and Path(file).is_file():
        return Student(name, arm, file=file, column=column)
    if not path.is_file():
        raise ValueError(
            f"student {name}: {what} does not exist; give a model folder, a run directory, a file "
            "of answers or a URL"
        )
    return Student(name, arm, file=what)


def _model_folder(name: str, path: Path, out: Path) -> Path:
    for folder in (path, path / EXPORTED):
        if (folder / "config.json").is_file():
            return folder
    return _convert(path, out / "students" / name)


def _convert(path: Path, folder: Path) -> Path:
    """Return a model folder with a checkpoint's student, which is written if it is not there."""
    # Megatron takes seconds to import, which only checkpoints need.
    from megatron_gad.training import parallel  # noqa: PLC0415
    from megatron_gad.training.conversion import (  # noqa: PLC0415
        find_checkpoint,
        find_hf_source,
        megatron_to_hf,
    )

    checkpoint = find_checkpoint(path)
    target = folder / checkpoint.name
    if target.exists():
        return target
    logger.info("writing the student of %s to %s", checkpoint, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    place = parallel.initialize(ParallelConfig(), seed=0)
    try:
        source = find_hf_source(checkpoint, "student")
        megatron_to_hf(checkpoint, source, target, "student", ParallelConfig(), place)
    finally:
        parallel.shut_down()
    return target


def answers_of(
    student: Student, items: Sequence[Item], options: EvaluateOptions, key: str, what: str
) -> list[list[Answered]]:
    """Return a student's answers to every prompt; what an earlier run got is not asked again.

    key: of the student's endpoint, if it is one. what: names the prompts in files and bars.

    A prompt that an endpoint refuses has a blank answer.

    Raises ValueError: a file or a model that cannot be used, or an endpoint that refuses all.
    """
    if student.file:
        column = student.column or options.teacher_column
        return read_answers(student.file, options.prompt_column, column, items)
    bar = tqdm(total=len(items), desc=f"{student.name}: {what}", disable=not options.show_progress)
    path = options.out / "answers" / f"{student.name}.jsonl"
    with RecordFile(path) as kept, bar:
        if student.folder is not None:
            return _answer_from_folder(student.folder, items, options, kept, bar)
        return _answer_from_endpoint(student, items, options, key, kept, bar)


def _answer_from_folder(
    folder: Path, items: Sequence[Item], options: EvaluateOptions, kept: RecordFile, bar: Any
) -> list[list[Answered]]:
    files = [*weight_files(folder), folder / "config.json"]
    weights = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    arguments = options.template_arguments
    drawing = [options.num_samples, options.temperature, options.max_tokens, options.seed]
    drawing += [options.system_prompt, arguments]
    # The draws depend on a prompt's number, so it is a part of what the answer depends on.
    keys = [
        content_key([weights, drawing, number if options.temperature else 0, item.key])
        for number, item in enumerate(items)
    ]
    missing = [number for number, key in enumerate(keys) if key not in kept.records]
    bar.update(len(items) - len(missing))
    if missing:
        sampling = SamplingConfig(
            options.num_samples, options.temperature, options.max_tokens, seed=options.seed
        )
        sglang = SGLangConfig(python=options.sglang_python)
        rollout = RolloutConfig(engine=options.engine)
        longest, site = options.max_prompt_tokens, ServerSite(folder=options.out)
        with Answerer(folder, sampling, longest, rollout, sglang, arguments, site) as answerer:
            size = AT_ONCE[options.engine]
            for start in range(0, len(missing), size):
                numbers = missing[start : start + size]
                asked = [with_system(items[n].messages, options.system_prompt) for n in numbers]
                answered = answerer.answer(asked, numbers)
                kept.append(
                    [_record(keys[n], each) for n, each in zip(numbers, answered, strict=True)]
                )
                bar.update(len(numbers))
    return [_answers(kept.records[key]) for key in keys]


def _answer_from_endpoint(
    student: Student,
    items: Sequence[Item],
    options: EvaluateOptions,
    key: str,
    kept: RecordFile,
    bar: Any,
) -> list[list[Answered]]:
    asked = {"temperature": options.temperature, "max_tokens": options.max_tokens}
    target = Target(student.url, student.model, key, asked)
    keys = [
        [
            content_key([student.model, asked, options.system_prompt, item.key, n])
            for n in range(options.num_samples)
        ]
        for item in items
    ]
    messages = {
        key: with_system(item.messages, options.system_prompt)
        for item, each in zip(items, keys, strict=True)
        for key in each
    }
    missing = [key for key in messages if key not in kept.records]
    bar.total = len(messages)
    bar.update(len(messages) - len(missing))

    async def ask() -> Pool[str]:
        endpoint = Endpoint(target, options.endpoint.patience)
        writing = asyncio.Lock()

        async def keep(question: Question[str], answer: Answer) -> str:
            was_cut = Ended(answer.text, finish_reason=answer.finish_reason).ending == "cut"
            record = _record(question.key, [Answered(answer.text, was_cut)])
            async with writing:
                await asyncio.to_thread(kept.append, [record])
            return ""

        pool = Pool(options.endpoint.limits, keep, lambda: bar.update() and None)
        try:
            await pool.run(Question(each, messages[each], endpoint) for each in missing)
        finally:
            await endpoint.close()
        return pool

    tally = asyncio.run(ask()).tally if missing else None
    unanswered = [each for each in messages if each not in kept.records]
    if tally and tally.stopped:
        raise ValueError(
            f"student {student.name}: {len(unanswered)} of {len(messages)} answers are missing "
            f"({tally.stopped}); the same command asks for them again"
        )
    if unanswered and tally:
        logger.warning(
            "student %s: %d of %d answers count as blank (%s); the same command asks again",
            *(student.name, len(unanswered), len(messages), next(iter(tally.reasons.values()))),
        )
    blank = _record("", [Answered("", was_cut=False)])
    return [[_answers(kept.records.get(key, blank))[0] for key in each] for each in keys]


def _record(key: str, answers: Sequence[Answered]) -> dict[str, Any]:
    return {"key": key, "answers": [{"text": a.text, "was_cut": a.was_cut} for a in answers]}


def _answers(record: dict[str, Any]) -> list[Answered]:
    return [Answered(each["text"], each["was_cut"]) for each in record["answers"]]
