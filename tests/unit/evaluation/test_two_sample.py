"""Fresh discriminators: blind where there is nothing to see, and sharp where there is."""

import numpy as np
import pytest

from megatron_gad.evaluation.intervals import Interval
from megatron_gad.evaluation.two_sample import Side, two_sample
from tests.unit.evaluation.alpaca_eval import alpaca_eval_file, read_rows

WORDS = [f"word{number}" for number in range(40)]
COUNT = 120


def sentences(seed: int, count: int = COUNT, length: int = 12) -> list[str]:
    """Random sentences of one distribution."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=length)) + "." for _ in range(count)]


def holds(interval: Interval, value: float) -> bool:
    """Say whether a value lies in an interval."""
    return interval.low <= value <= interval.high


def test_two_samples_of_one_distribution_cannot_be_told_apart() -> None:
    teacher = Side(sentences(0), range(COUNT))
    found = two_sample(teacher, Side(sentences(1), range(COUNT)), np.random.default_rng(0))
    assert all(holds(auc, 0.5) for auc in (found.text, found.length, found.format))
    assert (found.is_paired, found.text.count) == (True, COUNT // 2)  # those that are read


def test_a_habit_of_wording_is_seen_by_the_text_alone() -> None:
    teacher = [text.replace("word1 ", "indeed ") for text in sentences(0, length=40)]
    student = [text.replace("word1 ", "surely ") for text in sentences(1, length=40)]
    found = two_sample(
        Side(teacher, range(COUNT)), Side(student, range(COUNT)), np.random.default_rng(0)
    )
    assert found.text.mean > 0.75
    assert holds(found.format, 0.5)


def test_length_and_a_last_newline_are_seen_by_those_who_look_for_them() -> None:
    teacher = Side(sentences(0, length=12), range(COUNT))
    longer = Side(sentences(1, length=18), range(COUNT))
    generator = np.random.default_rng(0)
    assert two_sample(teacher, longer, generator).length.mean == 1.0
    newline = Side([text + "\n" for text in sentences(1)], range(COUNT))
    found = two_sample(teacher, newline, generator)
    assert found.format.mean == 1.0


def test_prompts_are_read_that_were_not_trained_on() -> None:
    # Each prompt has words of its own, which tell its teacher's texts from its student's: with
    # a text of the same prompt in the training, every other text would be known.
    prompts = [number // 2 for number in range(2 * COUNT)]
    sides = [Side([f"{name}{p} {name}{p}" for p in prompts], prompts) for name in ("q", "w")]
    shuffled = np.random.default_rng(0).random(COUNT) < 0.5
    texts: list[list[str]] = [[], []]
    for place, prompt in enumerate(prompts):
        for number in (0, 1):
            texts[number].append(sides[number ^ int(shuffled[prompt])].texts[place])
    mixed = [Side(each, prompts) for each in texts]
    found = two_sample(mixed[0], mixed[1], np.random.default_rng(0))
    assert holds(found.text, 0.5)


def test_texts_to_one_prompt_are_compared_if_there_are_any() -> None:
    # Lengths depend on the prompt far more than on the side, which adds one word.
    lengths = np.random.default_rng(0).integers(5, 200, size=COUNT)
    teacher = Side([" ".join(["x"] * n) for n in lengths], range(COUNT))
    student = Side([" ".join(["x"] * (n + 1)) for n in lengths], range(COUNT))
    paired = two_sample(teacher, student, np.random.default_rng(0))
    assert (paired.length.mean, paired.length.low) == (1.0, 1.0)
    elsewhere = Side(student.texts, range(COUNT, 2 * COUNT))
    pooled = two_sample(teacher, elsewhere, np.random.default_rng(0))
    assert not pooled.is_paired
    assert holds(pooled.length, 0.5)


def test_too_few_prompts_are_refused() -> None:
    few = Side(sentences(0, count=10), range(10))
    with pytest.raises(ValueError, match="10 and 10 prompts"):
        two_sample(few, few, np.random.default_rng(0))


def test_halves_of_one_real_model_are_alike_and_two_real_models_are_not() -> None:
    rows = read_rows(alpaca_eval_file("answers.jsonl"))
    order = np.random.default_rng(0).permutation(len(rows))

    def side(model: str, numbers: np.ndarray) -> Side:
        return Side([rows[n][model] for n in numbers], [rows[n]["index"] for n in numbers])

    generator = np.random.default_rng(1)
    halves = [side("gpt_4o_2024_05_13", part) for part in np.array_split(order, 2)]
    alike = two_sample(halves[0], halves[1], generator)
    assert all(holds(auc, 0.5) for auc in (alike.text, alike.length, alike.format))
    others = two_sample(
        side("gpt4_1106_preview", order), side("gpt_4o_2024_05_13", order), generator
    )
    assert others.text.low > 0.9
    assert others.text.mean > others.format.mean
    assert others.text.mean > others.length.mean
