"""Get a small real model and real answers of a teacher: ``python -m examples.smollm2.prepare``.

Writes OUT/student (SmolLM2-135M-Instruct as a Hugging Face folder), OUT/train.jsonl and
OUT/eval.jsonl (instructions of AlpacaEval with GPT-4's answers to them).
"""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from transformers import AutoTokenizer

from examples.smollm2.model import write_student

ANSWERS = ("tatsu-lab/alpaca_eval", "alpaca_eval_gpt4_baseline")
TEACHER = "gpt4_1106_preview_concise"
SEED = 1234


@dataclass(frozen=True)
class Options:
    """Write the student and the rows of the SmolLM2 example.

    Attributes:
        out: folder to write to.
        model: folder of the model, if it is on this machine already; else it is fetched.
        answers: JSON or JSONL file whose rows have "instruction" and the teacher's answer; else
            AlpacaEval's reference answers are fetched from the Hugging Face Hub.
        teacher: column of answers; "output" if the file is AlpacaEval's own.
        max_prompt_tokens: longest prompt, template included; longer ones are left out.
        max_answer_tokens: longest answer of the teacher; longer ones are left out.
        num_eval: rows that are held out.
    """

    out: Path = Path("runs/smollm2/assets")
    model: Path | None = None
    answers: Path | None = None
    teacher: str = TEACHER
    max_prompt_tokens: int = 128
    max_answer_tokens: int = 512
    num_eval: int = 40


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Write everything, and say how much of it there is."""
    student = options.out / "student"
    if options.model is not None:
        student.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(options.model, student, dirs_exist_ok=True)
    elif not (student / "config.json").is_file():
        write_student(student)
    pairs = read_pairs(options.answers, options.teacher)
    tokenizer = AutoTokenizer.from_pretrained(student)
    fitting = [pair for pair in pairs if fits(pair, tokenizer, options)]
    if len(fitting) <= options.num_eval:
        raise ValueError(
            f"{len(fitting)} of {len(pairs)} rows are within the limits of "
            f"{options.max_prompt_tokens} prompt and {options.max_answer_tokens} answer tokens, "
            "which leaves none to train on; raise the limits or give other --answers"
        )
    random.Random(SEED).shuffle(fitting)
    write_rows(options.out / "eval.jsonl", fitting[: options.num_eval])
    write_rows(options.out / "train.jsonl", fitting[options.num_eval :])
    print(
        f"{options.out}: {len(fitting) - options.num_eval} rows to train on and {options.num_eval} "
        f"held out, of {len(pairs)}"
    )


def read_pairs(file: Path | None, teacher: str) -> list[tuple[str, str]]:
    """Return (instruction, answer) pairs of a file, or of AlpacaEval on the hub."""
    if file is None:
        from datasets import load_dataset  # noqa: PLC0415 (not needed with a file)

        repository, name = ANSWERS
        rows: list[dict[str, Any]] = list(load_dataset(repository, name, split="eval"))  # pyright: ignore
        return [(row["instruction"], row["output"]) for row in rows]
    text = file.read_text(encoding="utf-8-sig")
    found = json.loads(text) if text.startswith("[") else map(json.loads, text.splitlines())
    rows = list(found)
    if teacher not in rows[0]:
        raise ValueError(f"{file} has no column {teacher!r} but {sorted(rows[0])}; set --teacher")
    return [(row["instruction"], row[teacher]) for row in rows]


def fits(pair: tuple[str, str], tokenizer: Any, options: Options) -> bool:
    """Return whether both texts keep to the limits in tokens."""
    question = [{"role": "user", "content": pair[0]}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    lengths = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (prompt, pair[1])]
    return lengths[0] <= options.max_prompt_tokens and 0 < lengths[1] < options.max_answer_tokens


def write_rows(file: Path, pairs: list[tuple[str, str]]) -> None:
    """Write pairs in the columns that ``data`` reads by default."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for instruction, answer in pairs:
            row = {
                "content": [{"role": "user", "content": instruction}],
                "teacher_response": answer,
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
