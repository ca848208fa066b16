"""What the student of an arm is worth, by the checker and by what needs none."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from examples.compare.tasks import Task
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.evaluation.answers import answer
from megatron_gad.evaluation.two_sample import Side, two_sample


def measure(task: Task, student: Path, test: Path, seed: int) -> dict[str, Any]:
    """Return accuracy sampled at T = 1 and greedy, shares, lengths, and the AUC of a fresh D.

    test: held-out rows with the teacher's responses, which the AUC compares the samples with.
    """
    rows = [json.loads(line) for line in test.open(encoding="utf-8")]
    conversations = [row["content"] for row in rows]
    prompts = [messages[-1]["content"] for messages in conversations]
    taught = [row["teacher_response"] for row in rows]
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=task.max_tokens, seed=seed)
    greedy = SamplingConfig(temperature=0.0, max_new_tokens=task.max_tokens)
    sampled = answer(student, conversations, sampling)
    likeliest = answer(student, conversations, greedy)
    numbers = range(len(rows))
    told_apart = two_sample(
        Side(taught, numbers), Side(sampled, numbers), np.random.default_rng(seed)
    )
    return {
        **task.report(prompts, sampled),
        "greedy": task.report(prompts, likeliest)["accuracy"],
        "words": sum(len(text.split()) for text in sampled) / len(sampled),
        "teacher_words": sum(len(text.split()) for text in taught) / len(taught),
        "auc": told_apart.text.mean,
        "examples": [*map(list, zip(prompts[:3], sampled[:3], strict=True))],
    }
