"""What is measured on held-out rows, against the oracle's models, and what it leaves alone."""

import copy
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from megatron_gad.__main__ import main
from megatron_gad.config.command_line import load_config
from megatron_gad.runtime.metrics import BEST_FOLDER, RESULTS_FILE
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.selection import keep_best
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.stages.held_out import evaluate_held_out
from megatron_gad.stages.stage import Stage
from megatron_gad.training.parallel import Parallel
from tests.oracle.models import Scorer, response_logprobs
from tests.ranks import statuses_of_ranks
from tests.stage_steps import take_step

NUM_PROMPTS = 5
OPTIONS = {"discriminator.score": "last_token", "seed": 1234, "discriminator.head-std": 0.1}


@pytest.fixture
def start(assets: Path, place: Parallel, tmp_path: Path):
    """Return a function that builds a run inside the adversarial stage."""

    def build(name: str = "run", **sections: dict[str, Any]) -> tuple[Run, Stage]:
        flags = ["examples/tiny/run.toml", "--stages", "adversarial", "--no-tensorboard"]
        flags += ["--save", str(tmp_path / name), "--data.path", str(assets / "train.jsonl")]
        flags += ["--data.eval-path", str(assets / "eval.jsonl")]
        flags += ["--evaluation.interval", "1", "--evaluation.num-prompts", str(NUM_PROMPTS)]
        config, _ = load_config([*flags, "--student.path", str(assets / "student")])
        changed = {
            key: dataclasses.replace(getattr(config, key), **values)
            for key, values in sections.items()
        }
        run = open_run(dataclasses.replace(config, **changed), place)
        return run, begin_stage(run)

    return build


def sampled_by(run: Run) -> dict[str, list[Any]]:
    """Return what gets the groups of every sampling, by its name."""
    seen: dict[str, list[Any]] = {}
    engine: Any = run.sampler.engine
    generate = engine.generate

    def record(prompts, sampling):
        seen[sampling.name] = generate(prompts, sampling)
        return seen[sampling.name]

    engine.generate = record
    return seen


def scorer_of(student: Path) -> Scorer:
    """The discriminator as the stage makes it: the student's network, a head from the seed."""
    network = AutoModel.from_pretrained(student, dtype=torch.float32).eval()
    return Scorer(network, OPTIONS)


def by_length(groups: list[Any], margins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How often the rule of the other half is right, and agrees with the scores, pair by pair."""
    pairs = [
        (number % 2, len(group.prompt.teacher_ids) - len(rollout.text_ids), float(margin))
        for number, group in enumerate(groups)
        for rollout, margin in zip(group.rollouts, margins[number], strict=True)
    ]
    right, agreeing = [], []
    for half, difference, margin in pairs:
        others = [each[1] for each in pairs if each[0] != half]
        votes = sum(each > 0 for each in others) - sum(each < 0 for each in others)
        guess = votes * difference  # above 0: the rule names the teacher's response
        right.append(0.5 if guess == 0 else float(guess > 0))
        agreeing.append(0.5 if guess == 0 else float((guess > 0) == (margin > 0)))
    return torch.tensor(right).mean(), torch.tensor(agreeing).mean()


def test_texts_and_likelihood_are_of_the_first_held_out_rows(start, assets: Path) -> None:
    run, _ = start()
    seen = sampled_by(run)
    found = evaluate_held_out(run)
    rows = [json.loads(line) for line in (assets / "eval.jsonl").read_text().splitlines()]
    greedy, sampled = seen["evaluation_0000000_greedy"], seen["evaluation_0000000_sampled"]
    asked = [group.prompt.messages[0]["content"] for group in sampled]
    assert asked == [row["content"][0]["content"] for row in rows[:NUM_PROMPTS]]
    assert [len(group.rollouts) for group in (*greedy, *sampled)] == [1] * 5 + [4] * 5

    teacher = sum(len(group.prompt.teacher_ids) for group in sampled)
    ids = [rollout.ids for group in sampled for rollout in group.rollouts]
    assert found["evaluation/length_ratio"] == pytest.approx(sum(map(len, ids)) / (4 * teacher))
    greedy_ids = [group.rollouts[0].ids for group in greedy]
    ratio = sum(map(len, greedy_ids)) / teacher
    assert found["evaluation/greedy_length_ratio"] == pytest.approx(ratio)
    cut = sum(each[-1] not in run.codec.stop_ids for each in ids) / 20
    assert found["evaluation/truncated_share"] == pytest.approx(cut)

    # Greedy: each id is the likeliest after those before it.
    model = AutoModelForCausalLM.from_pretrained(assets / "student", dtype=torch.float32).eval()
    prompt, answer = list(greedy[0].prompt.ids), list(greedy_ids[0])
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0]
    assert logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist() == answer
    pairs = [(list(group.prompt.ids), list(group.prompt.teacher_ids)) for group in sampled]
    with torch.no_grad():
        logprobs, _ = response_logprobs(model, pairs, temperature=1.0)
    assert found["evaluation/loss"] == pytest.approx(-float(torch.cat(logprobs).mean()), rel=1e-5)


def test_the_discriminator_is_read_on_pairs_and_on_changed_texts(start, assets: Path) -> None:
    run, _ = start()
    before = copy.deepcopy([value.clone() for _, value in run.discriminator.hf_weights()])
    seen = sampled_by(run)
    found = evaluate_held_out(run)
    scorer = scorer_of(assets / "student")
    groups = run.sampler.with_text(seen["evaluation_0000000_sampled"])
    with torch.no_grad():
        teachers = torch.stack(
            [scorer([(list(g.prompt.ids), list(g.prompt.teacher_ids))])[0] for g in groups]
        )
        students = torch.stack(
            [scorer([(list(g.prompt.ids), list(r.text_ids)) for r in g.rollouts]) for g in groups]
        )
        without_end = torch.stack(
            [scorer([(list(g.prompt.ids), list(g.prompt.teacher_ids[:-1]))])[0] for g in groups]
        )
    margins, spread = teachers[:, None] - students, students.std(dim=1).mean()
    sure = torch.maximum(margins.sigmoid(), (-margins).sigmoid())
    small = sure < 1 / (1 + math.exp(-1))
    alone, agreement = by_length(groups, margins)
    expected = {
        "evaluation/length_only_accuracy": alone,
        "evaluation/length_only_agreement": agreement,
        "evaluation/discriminator_margin": margins.mean(),
        "evaluation/discriminator_accuracy": (margins > 0).float().mean(),
        "evaluation/discriminator_expected_accuracy": sure.mean(),
        "evaluation/group_std": spread,
        "calibration/pairs_0_to_1": small.float().mean(),
        "calibration/expected_0_to_1": sure[small].mean(),
        "calibration/observed_0_to_1": (margins[small] > 0).float().mean(),
        "probe/same": torch.tensor(0.0),
        "probe/no_end_token": (without_end - teachers).mean() / spread,
    }
    assert {key: found[key] for key in expected} == pytest.approx(
        {key: float(value) for key, value in expected.items()}, rel=1e-4, abs=1e-6
    )
    assert found["probe/same"] == 0.0
    assert all(map(math.isfinite, found.values()))
    # It scores and does not learn.
    after = [value for _, value in run.discriminator.hf_weights()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("overlap", [False, True])
def test_training_is_the_same_with_and_without(start, overlap: bool) -> None:
    section = {"adversarial": {"overlap": overlap}, "gad": {"tis_cap": 2.0}}
    losses = []
    for name in ("alone", "measured"):
        run, stage = start(name, **section)
        taken = []
        for _ in range(3):
            metrics = take_step(run, stage).metrics
            taken.append(
                {key: metrics[key] for key in metrics if "/loss" in key or "reward" in key}
            )
            if name == "measured":
                evaluate_held_out(run)
        run.close()
        losses.append(taken)
    assert losses[0] == losses[1]


def test_the_best_student_is_kept_with_its_rule(start) -> None:
    run, _ = start(evaluation={"select": "evaluation/ngram_f1", "max_length_ratio": 1.5})

    def offer(step: int, score: float, ratio: float) -> int | None:
        run.progress.iteration = step
        keep_best(run, {"evaluation/ngram_f1": score, "evaluation/length_ratio": ratio})
        file = run.folder / RESULTS_FILE
        return json.loads(file.read_text())["best"]["step"] if file.exists() else None

    assert offer(1, 0.5, 1.6) is None  # too long
    assert not (run.folder / BEST_FOLDER).exists()
    assert offer(2, 0.3, 1.5) == 2
    assert (run.folder / BEST_FOLDER / "model.safetensors").is_file()
    assert offer(3, 0.29, 1.0) == 2
    assert offer(4, math.nan, 1.0) == 2
    assert offer(5, 0.31, 0.1) == 5
    best = json.loads((run.folder / RESULTS_FILE).read_text())["best"]
    assert best["rule"] == "highest evaluation/ngram_f1 with evaluation/length_ratio at most 1.5"
    assert best["evaluation/ngram_f1"] == 0.31


def test_the_lowest_loss_is_the_best(start) -> None:
    run, _ = start(evaluation={"select": "evaluation/loss"})
    for step, loss in enumerate((2.0, 1.0, 1.5)):
        run.progress.iteration = step
        keep_best(run, {"evaluation/loss": loss, "evaluation/length_ratio": 1.0})
    assert json.loads((run.folder / RESULTS_FILE).read_text())["best"]["step"] == 1


def run_command(words: list[str]) -> int:
    """Run the command in this process."""
    sys.argv = ["megatron_gad", *words]
    return main()


def test_two_data_ranks_measure_what_one_does(assets: Path, tmp_path: Path) -> None:
    words = ["examples/tiny/run.toml", "--no-tensorboard", "--stages", "warmup"]
    words += ["--data.path", str(assets / "train.jsonl"), "--warmup.steps", "3"]
    words += ["--data.eval-path", str(assets / "eval.jsonl")]
    words += ["--student.path", str(assets / "student"), "--evaluation.interval", "2"]
    words += ["--evaluation.num-prompts", "5", "--evaluation.select", "evaluation/loss"]
    found = []
    for num_ranks in (1, 2):
        save = tmp_path / f"{num_ranks}"
        own = [*words, "--save", str(save)]
        log = tmp_path / "log"
        statuses = statuses_of_ranks(run_command, num_ranks, own, log=log, timeout_s=600)
        assert set(statuses) == {0}, log.read_text()
        steps = [json.loads(line) for line in (save / "metrics.jsonl").read_text().splitlines()]
        # Every second step is measured, and the stage's last.
        assert ["evaluation/loss" in step for step in steps] == [False, True, True]
        measured = [
            {k: v for k, v in s.items() if k.startswith(("eval", "calib", "probe"))} for s in steps
        ]
        found.append(measured)
    for one, two in zip(*found, strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5)
    best = [json.loads((tmp_path / n / RESULTS_FILE).read_text())["best"]["step"] for n in "12"]
    assert best[0] == best[1]
