"""A run folder with believable numbers, written by the product's own writer."""

import json
import math
import random
from pathlib import Path
from typing import Any

from megatron_gad.config.output import LogConfig
from megatron_gad.runtime.metrics import MetricsWriter

CONFIG = """\
stages = ["seqkd", "warmup", "adversarial"]
seed = 7

[compute]
bf16 = false

[data]
path = "data/robot_turns.jsonl"

[student]
path = "data/student"

[adversarial]
prompts_per_step = 16
group_size = 8

[gad]
advantage = "grpo"
kl_coef = 0.001
"""
TURNS = {"left": -1, "right": 1, "back": 2}
DIRECTIONS = ("north", "east", "south", "west")


def write_run(folder: Path, steps: tuple[int, int, int] = (60, 40, 50), seed: int = 0) -> Path:
    """Write config, metrics and samples of a healthy run with steps of the three stages."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG)
    noise = random.Random(seed)
    writer = MetricsWriter(folder, LogConfig(log_interval=0, tensorboard=False), is_writer=True)
    step = 0
    for stage, num_steps in zip(("seqkd", "warmup", "adversarial"), steps, strict=True):
        for index in range(num_steps):
            step += 1
            numbers = NUMBERS[stage](index / max(num_steps - 1, 1), noise)
            writer.write(step, stage, numbers, consumed_samples=16 * step)
            every = max(num_steps // 5, 1)
            if stage != "seqkd" and (index % every == 0 or index == num_steps - 1):
                skill = 0.55 + 0.35 * (index / num_steps) * (stage == "adversarial")
                writer.write_samples(step, stage, sample_rows(skill, noise))
    writer.close()
    return folder


def write_metrics(folder: Path, stage: str, rows: list[dict[str, float]]) -> Path:
    """Write a run of one stage with exactly these numbers, steps counted from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = MetricsWriter(folder, LogConfig(log_interval=0, tensorboard=False), is_writer=True)
    for step, numbers in enumerate(rows, start=1):
        writer.write(step, stage, numbers, consumed_samples=step)
    writer.close()
    return folder


def write_results(folder: Path) -> None:
    """Write a results file of the quickstart's form."""
    results = {
        "untrained": {"accuracy": 0.0, "greedy": 0.0, "length": 31.8},
        "seqkd": {"accuracy": 0.658, "greedy": 0.24, "length": 17.0},
        "seqkd_equal_compute": {"accuracy": 0.574, "greedy": 0.252, "length": 17.0},
        "gad": {"accuracy": 0.881, "greedy": 1.0, "length": 16.6},
        "seconds": {"seqkd": 67.2, "warmup": 59.0, "adversarial": 73.4, "total": 261.0},
    }
    (folder / "results.json").write_text(json.dumps(results))


def sample_rows(skill: float, noise: random.Random) -> list[dict[str, Any]]:
    """Return samples of three prompts whose rollouts are right with this probability."""
    rows = []
    for prompt in range(3):
        prompt_noise = random.Random(prompt)
        turns = [prompt_noise.choice(list(TURNS)) for _ in range(6)]
        start = prompt_noise.randrange(4)
        scores = [noise.gauss(0.0, 1.0) for _ in range(8)]
        mean = sum(scores) / len(scores)
        rollouts = [
            {
                "text": robot_answer(start, turns, noise.random() < skill),
                "score": score,
                "advantage": score - mean,
                "length": 17,
                "finish_reason": "stop" if noise.random() < 0.97 else "length",
            }
            for score in scores
        ]
        question = f"face {DIRECTIONS[start]} turn " + " ".join(turns)
        teacher = robot_answer(start, turns, is_right=True)
        rows.append({"prompt": question, "teacher": teacher, "rollouts": rollouts})
    return rows


def robot_answer(start: int, turns: list[str], is_right: bool) -> str:
    """Return the working of a robot's turns, with a wrong claim at the front where not right."""
    facing, words = start, [DIRECTIONS[start]]
    for turn in turns:
        facing = (facing + TURNS[turn]) % 4
        words += [turn, DIRECTIONS[facing]]
    claimed = DIRECTIONS[facing if is_right else (facing + 1) % 4]
    return f"facing {claimed}, because {' '.join(words)}."


def _seqkd(progress: float, noise: random.Random) -> dict[str, float]:
    loss = 0.1 + 2.4 * math.exp(-6 * progress) + 0.02 * noise.gauss(0, 1)
    numbers = {
        "student/loss": abs(loss),
        "student/grad_norm": 0.5 + 2 * math.exp(-5 * progress) * math.exp(noise.gauss(0, 0.3)),
        "student/lr": 3e-3 * min(1.0, 20 * progress + 0.01),
        "time/student_s": 0.03 * math.exp(noise.gauss(0, 0.1)),
        "time/step_s": 0.035,
        "tokens/trained": 544,
        "data/epoch": 3 * progress,
    }
    if noise.random() < 0.1:
        numbers["student/eval_loss"] = abs(loss) + 0.03
    return numbers


def _sampling(noise: random.Random) -> dict[str, float]:
    return {
        "response/length_mean": 16.8 + noise.gauss(0, 0.15),
        "teacher/length_mean": 17.0 + noise.gauss(0, 0.05),
        "response/truncated_share": abs(noise.gauss(0.004, 0.003)),
        "response/retokenized_share": 0.0,
        "engine/logprob_gap_max": 4e-6 * math.exp(noise.gauss(0, 0.3)),
        "engine/tokens_per_s": 2600 * math.exp(noise.gauss(0, 0.1)),
        "engine/running_rows": 60 + noise.gauss(0, 4),
        "engine/waiting_rows": 0.0,
        "engine/cache_hit_share": 0.875,
        "engine/logprob_gap_mean": 6e-7 * math.exp(noise.gauss(0, 0.2)),
        "swap/bytes": 612_352,
        "time/rollout_s": 0.2 * math.exp(noise.gauss(0, 0.1)),
        "time/swap_s": 0.02,
    }


def _discriminator(loss: float, margin: float, noise: random.Random) -> dict[str, float]:
    student = -0.3 + noise.gauss(0, 0.1)
    return {
        "discriminator/loss": loss + 0.02 * noise.gauss(0, 1),
        "discriminator/accuracy": min(0.62 + 0.15 * margin + 0.03 * noise.gauss(0, 1), 1.0),
        "discriminator/margin": margin + 0.05 * noise.gauss(0, 1),
        "discriminator/student_score": student,
        "discriminator/teacher_score": student + margin,
        "discriminator/grad_norm": 0.8 * math.exp(noise.gauss(0, 0.3)),
        "discriminator/lr": 6e-4,
        "time/discriminator_s": 0.12 * math.exp(noise.gauss(0, 0.1)),
    }


def _warmup(progress: float, noise: random.Random) -> dict[str, float]:
    known = 1 / (1 + math.exp(-14 * (progress - 0.6)))
    return {
        **_sampling(noise),
        **_discriminator(0.69 - 0.23 * known, 1.2 * known, noise),
        "time/step_s": 0.36,
    }


def _adversarial(progress: float, noise: random.Random) -> dict[str, float]:
    return {
        **_sampling(noise),
        **_discriminator(0.47 + 0.05 * progress, 1.1 - 0.4 * progress, noise),
        "student/loss": 0.02 * noise.gauss(0, 1),
        "student/grad_norm": 0.4 * math.exp(noise.gauss(0, 0.25)),
        "student/lr": 8e-5,
        "student/kl": 0.09 * progress + abs(noise.gauss(0, 0.003)),
        "student/entropy": 0.11 - 0.03 * progress + noise.gauss(0, 0.002),
        "reward/mean": -0.5 + 0.9 * progress + 0.1 * noise.gauss(0, 1),
        "reward/std": 0.9 + 0.05 * noise.gauss(0, 1),
        "advantage/zero_share": 0.05 + 0.1 * progress + abs(noise.gauss(0, 0.02)),
        "tokens/trained": 2140 + noise.randrange(60),
        "time/student_s": 0.1 * math.exp(noise.gauss(0, 0.1)),
        "time/step_s": 0.47,
    }


NUMBERS = {"seqkd": _seqkd, "warmup": _warmup, "adversarial": _adversarial}
