"""The comparison: its arms, what they cost, what is run again, and its tables."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from examples.compare import play
from examples.compare.arms import ARMS, BASE
from examples.compare.costs import Lengths, row_flops, run_flops, step_flops
from examples.compare.play import RESULT, Seed
from examples.compare.results import gains, summary
from examples.compare.running_totals import answer_of, draw_prompts, grade, report
from examples.compare.tasks import TASKS
from megatron_gad.checks.limits import check_limits
from megatron_gad.config.command_line import load_config
from megatron_gad.config.run import RunConfig

TOTALS = TASKS["totals"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Seed:
    return Seed.open(TOTALS, seed=3, out=tmp_path_factory.mktemp("compare"))


def test_totals_by_hand() -> None:
    # 4 + 7 = 11, 1 * 3 = 3, 3 - 5 = -2, which ends in 8.
    assert answer_of("from 4 add 7 times 3 less 5") == "1 3 8."


def test_a_step_is_judged_by_the_total_that_was_written_before_it() -> None:
    graded = grade("from 4 add 7 times 3 less 5", "2 6 1.")
    assert (graded.is_right, graded.has_form) == (False, True)
    assert (graded.good_steps, graded.num_steps) == (2, 3)


@pytest.mark.parametrize("text", ["1 3.", "1 3 8", "1 3 8 8.", "", "1 3 8. "])
def test_a_response_of_another_form_has_no_steps(text: str) -> None:
    graded = grade("from 4 add 7 times 3 less 5", text)
    assert (graded.is_right, graded.has_form, graded.num_steps) == (False, False, 0)


def test_a_report_of_shares() -> None:
    prompt = "from 4 add 7 times 3 less 5"
    found = report([prompt] * 4, ["1 3 8.", "2 6 1.", "1 3", "1 3 8."])
    assert found == {"accuracy": 0.5, "form_share": 0.75, "step_accuracy": 8 / 9}


def test_prompts_are_different_and_those_of_the_seed() -> None:
    prompts = draw_prompts(3, 500)
    assert len({*prompts}) == 500
    assert prompts[:20] == draw_prompts(3, 20) != draw_prompts(4, 20)


@pytest.mark.parametrize("task", TASKS.values(), ids=[*TASKS])
def test_no_prompt_is_in_two_splits_and_the_teacher_is_always_right(task, tmp_path) -> None:
    data, _ = task.make(tmp_path, seed=5)
    rows = {
        split: [json.loads(line) for line in getattr(data, split).open()]
        for split in ("train", "validation", "test")
    }
    prompts = {split: [row["content"][0]["content"] for row in rows[split]] for split in rows}
    everything = [prompt for each in prompts.values() for prompt in each]
    assert len({*everything}) == len(everything)
    taught = [row["teacher_response"] for row in rows["test"]]
    assert task.report(prompts["test"], taught)["accuracy"] == 1.0


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_is_a_valid_configuration(opened: Seed, name: str) -> None:
    arm = ARMS[name]
    config, _ = load_config(opened.arguments(arm.stages, arm.flags))
    assert not list(check_limits(config))
    assert config.stages == arm.stages
    assert step_flops(config, getattr(config, arm.sized), opened.shape, opened.lengths) > 0


@pytest.mark.parametrize("is_trained", [False, True])
def test_operations_of_a_row_are_those_that_torch_counts(opened: Seed, is_trained: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(str(opened.student), attn_implementation="eager")
    ids = torch.randint(5, 20, (1, 23), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(is_trained):
        output = model(ids, labels=ids if is_trained else None)
        if is_trained:
            output.loss.backward()
    shape = opened.shape
    # Two products of 23 x 23 for each head and layer, of which causal attention needs the half.
    square = 2 * 2 * 23 * 23 * shape.num_layers * shape.num_heads * shape.head_dim
    expected = row_flops(shape, 16, 7, is_scorer=False) + square / 2
    assert counter.get_total_flops() == (3 if is_trained else 1) * expected


def test_a_group_reads_its_prompt_once(opened: Seed) -> None:
    alone = row_flops(opened.shape, 16, 7, is_scorer=False)
    prompt = row_flops(opened.shape, 16, 0, is_scorer=False)
    shared = row_flops(opened.shape, 16, 7, is_scorer=False, sharing=4)
    assert 4 * shared == pytest.approx(4 * alone - 3 * prompt)


def test_a_step_of_the_game_by_hand(opened: Seed) -> None:
    flags = {"adversarial.prompts_per_step": "3", "adversarial.group_size": "2"}
    config, _ = load_config(opened.arguments(ARMS["gad"].stages, flags))
    lengths, shape = Lengths(16, 7, 5), opened.shape
    student = row_flops(shape, 16, 5, is_scorer=False)
    drawn = row_flops(shape, 16, 5, is_scorer=False, sharing=2)
    judged, taught = (row_flops(shape, 16, tokens, is_scorer=True) for tokens in (5, 7))
    # 6 samples; the reference's pass and a training step over them; 3 groups for D.
    expected = 6 * drawn + 6 * student + 6 * 3 * student + 3 * (3 * taught + 6 * judged)
    assert step_flops(config, config.adversarial, shape, lengths) == pytest.approx(expected)


def test_a_step_beside_a_teacher_model_by_hand(opened: Seed) -> None:
    arm, lengths, shape = ARMS["white_box"], Lengths(16, 7, 5), opened.shape
    config, _ = load_config(opened.arguments(arm.stages, {"white_box.prompts_per_step": "6"}))
    student = row_flops(shape, 16, 5, is_scorer=False)
    # 6 samples, each read once by the teacher model, and trained on: of the student's length.
    assert step_flops(config, config.white_box, shape, lengths) == pytest.approx(
        6 * student + 6 * student + 6 * 3 * student
    )


def test_a_model_of_the_teacher_reads_new_prompts_and_every_answer(tmp_path) -> None:
    TASKS["turns"].write_teacher_rows(tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").open()]
    answers: dict[str, set[str]] = {}
    for row in rows:
        prompt = row["content"][0]["content"]
        answers.setdefault(prompt, set()).add(row["teacher_response"])
    assert (len(rows), len(answers)) == (24_000, 3000)
    # Eight draws of three layouts: nearly all prompts have two or three of them.
    assert sum(len(each) > 1 for each in answers.values()) > 2900


def test_a_run_counts_the_tokens_that_each_step_had(opened: Seed) -> None:
    config, _ = load_config(opened.arguments(("seqkd", "warmup"), {}))
    records: list[dict[str, Any]] = [
        {"stage": "seqkd"},
        {"stage": "warmup", "response/length_mean": 4.0, "teacher/length_mean": 9.0},
    ]
    shape, lengths = opened.shape, opened.lengths
    own = Lengths(lengths.prompt, 9.0, 4.0)
    assert run_flops(config, shape, lengths, records) == pytest.approx(
        step_flops(config, config.seqkd, shape, lengths)
        + step_flops(config, config.warmup, shape, own)
    )


def _num_done(config: RunConfig) -> int:
    """Return how many stages the checkpoint that a run goes on from has behind it."""
    if not config.checkpoint.load or config.checkpoint.finetune:
        return 0
    return 1 if config.checkpoint.ckpt_step == config.seqkd.num_steps(2500) else 2


class Runs:
    """Takes the place of training: notes what is run, and writes metrics of so many steps."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, int]] = {}

    def __call__(self, arguments: list[str], log: Path) -> float:
        config, _ = load_config(arguments)
        folder = Path(config.checkpoint.save)
        folder.mkdir(parents=True)
        taken = {
            stage: getattr(config, stage).num_steps(2500)
            for stage in config.stages[_num_done(config) :]
        }
        self.steps[folder.name] = taken
        record = {"time/step_s": 1.0, "student/entropy": 0.5}
        lines = [{"stage": stage, **record} for stage, count in taken.items() for _ in range(count)]
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": n, **line}) + "\n" for n, line in enumerate(lines, 1))
        )
        return float(len(lines))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs()
    monkeypatch.setattr(play, "run_command", found)
    monkeypatch.setattr(
        play, "measure", lambda *_: {"accuracy": 0.5, "greedy": 0.5, "words": 6.0, "auc": 0.5}
    )
    return found


@pytest.mark.parametrize("name", [name for name in ARMS if not ARMS[name].least])
def test_every_arm_costs_what_gad_costs(tmp_path, runs: Runs, name: str) -> None:
    seed = Seed.open(TOTALS, 3, tmp_path)
    gad, base = seed.play("gad")["flops"], seed.begin()["stages"]["seqkd"]["flops"]
    # To within a step of its last stage.
    config, _ = load_config(seed.arguments(ARMS[name].stages, ARMS[name].flags))
    step = step_flops(config, config.stage_sections[-1], seed.shape, seed.lengths)
    expected = base + ARMS[name].share * (gad - base)
    assert seed.play(name)["flops"] == pytest.approx(expected, abs=step)


def test_seqkd_goes_on_for_the_seconds_of_gad_if_that_is_longer(tmp_path, runs: Runs) -> None:
    seed = Seed.open(TOTALS, 3, tmp_path)
    gad, longer = seed.play("gad"), seed.play("seqkd_longer")
    assert longer["flops"] >= gad["flops"] * 0.999
    assert longer["seconds"] >= gad["seconds"] - 1


def test_a_second_call_runs_only_what_is_missing_or_was_made_otherwise(tmp_path, runs) -> None:
    seed = Seed.open(TOTALS, 3, tmp_path)
    seed.play("gad")
    assert [*runs.steps] == [BASE, "gad"]
    runs.steps.clear()
    seed.play("frozen")
    assert [*runs.steps] == ["frozen"]
    runs.steps.clear()
    other = replace(seed, task=replace(TOTALS, flags={"adversarial.student_lr": "1e-3"}))
    other.play("gad")
    assert [*runs.steps] == [BASE, "gad"]
    assert (seed.folder / "gad" / RESULT).exists()


def _result(accuracy: float, seconds: float = 9.0) -> dict[str, Any]:
    shares = dict.fromkeys(TOTALS.shown, 0.5)
    numbers = {"greedy": 1.0, "words": 6.0, "auc": 0.55, "flops": 2e12, "seconds": seconds}
    return {"accuracy": accuracy, **shares, **numbers}


def test_the_table_has_paired_gains_and_marks_those_beyond_noise() -> None:
    base = {20: _result(0.5), 21: _result(0.6), 22: _result(0.4)}
    better = {20: _result(0.72), 21: _result(0.8), 22: _result(0.61)}
    noisy = {20: _result(0.2), 21: _result(0.9), 22: _result(0.6)}
    arms = {"seqkd_longer": base, "gad": better, "frozen": noisy}
    assert gains(arms, "gad", "seqkd_longer") == pytest.approx([0.22, 0.2, 0.21])
    text = summary({"totals": arms})
    # Student's t for two degrees of freedom: .21 +- 4.303 * .01 / sqrt(3) = .21 +- .0248.
    assert "| **+21** (+19 to +23) |" in text
    assert "seeds 20, 21, 22" in text
    line = next(line for line in text.splitlines() if line.startswith("| frozen D |"))
    assert "**" not in line
