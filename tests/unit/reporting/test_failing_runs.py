"""Runs that are made to fail: the rules see it, do what they are told to, and say why."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megatron_gad.errors import STOPPED
from tests.unit.reporting.failing_runs import (
    NORTH,
    SOUTH,
    Played,
    assert_told,
    game,
    read_rows,
    rewarded_length,
    short_teacher,
    write_rows,
)

pytestmark = pytest.mark.slow


def test_a_discriminator_that_has_won_is_paused(assets: Path, tmp_path: Path) -> None:
    # The texts of the student run to the cap without an end token; the teacher says two words.
    flags = ["--data.path", str(short_teacher(assets, tmp_path))]
    flags += ["--adversarial.discriminator-lr", "3e-3", "--adversarial.student-lr", "1e-9"]
    flags += ["--health.pause-discriminator", "strong_discriminator"]
    status, steps, log = game(assets, tmp_path / "run", 43, *flags)
    assert status == 0, log
    assert [rule for rule in ("truncated", "length_ratio") if f"({rule})" not in log] == []
    paused = "the discriminator is paused until this is over"
    remedy = "a lower adversarial.discriminator_lr"
    assert_told(tmp_path / "run", log, "strong_discriminator", remedy, paused)
    learned = ["discriminator/grad_norm" in step for step in steps]
    assert learned == [True] * 40 + [False] * 3
    # It scores on, so that the rule can end; and the student learns on.
    assert all("discriminator/accuracy" in step and "student/loss" in step for step in steps)


def test_a_student_without_variety_is_not_trained(assets: Path, tmp_path: Path) -> None:
    flags = ["--rollout.temperature", "1e-4", "--evaluation.interval", "20"]
    flags += ["--health.skip-student", "zero_advantages"]
    status, steps, log = game(assets, tmp_path / "run", 22, *flags)
    assert status == 0, log
    skipped = "the student is not trained until this is over"
    assert_told(tmp_path / "run", log, "zero_advantages", "Raise rollout.temperature", skipped)
    assert "(non_finite)" not in log  # without a spread the probes have no unit, and no number
    assert "(repetition)" in log  # the likeliest text of random weights goes round in circles
    assert ["student/loss" in step for step in steps] == [True] * 20 + [False] * 2
    assert all("discriminator/grad_norm" in step for step in steps)


def test_a_discriminator_that_never_learns_stops_the_run(assets: Path, tmp_path: Path) -> None:
    flags = ["--adversarial.discriminator-interval", "0", "--data.max-response-tokens", "4"]
    flags += ["--health.stop", "frozen_discriminator", "--samples-interval", "0"]
    flags += ["--adversarial.student-lr", "1e-2"]
    status, steps, log = game(assets, tmp_path / "run", 170, *flags)
    assert status == STOPPED, log
    assert len(steps) == 160  # at the first look after 150 steps
    assert "as health.stop says (frozen_discriminator)" in log
    remedy = "discriminator_interval = 1"
    assert_told(tmp_path / "run", log, "frozen_discriminator", remedy, "the run is stopped")
    # The student has found what it likes: rubbish that it puts above the teacher's text.
    assert "(weak_discriminator)" in log
    assert "(kl)" in log
    assert steps[-1]["reward/mean"] > steps[0]["reward/mean"]


def test_a_student_that_is_rewarded_for_length_runs_to_the_cap(
    assets: Path, tmp_path: Path
) -> None:
    # It has learned to be as short as the teacher before the game begins.
    flags = [rewarded_length(tmp_path, 1.0), "--data.path", str(short_teacher(assets, tmp_path))]
    flags += ["--stages", "seqkd", "adversarial", "--seqkd.steps", "20"]
    flags += ["--adversarial.group-size", "4", "--adversarial.student-lr", "3e-3"]
    status, steps, log = game(assets, tmp_path / "run", 20, *flags)
    assert status == 0, log
    assert [rule for rule in ("length_ratio", "truncated") if f"({rule})" not in log] == []
    assert steps[20]["response/length_mean"] < 12
    assert steps[-1]["response/length_mean"] == 24


def test_a_student_that_is_rewarded_for_brevity_loses_its_entropy(
    assets: Path, tmp_path: Path
) -> None:
    flags = [rewarded_length(tmp_path, -1.0), "--adversarial.group-size", "4"]
    flags += ["--adversarial.student-lr", "1e-2", "--gad.kl-coef", "0"]
    flags += ["--health.stop", "entropy"]
    status, steps, log = game(assets, tmp_path / "run", 60, *flags)
    assert status == STOPPED, log
    assert len(steps) == 40
    assert "as health.stop says (entropy)" in log
    assert "Responses have become short" in log
    assert steps[-1]["student/entropy"] < 0.1 * steps[0]["student/entropy"]


NUM_ROWS, NUM_RECORDED = 8, 40


def game_of_few_rows(assets: Path, save: Path, steps: int, *flags: str) -> Played:
    """Play with a few rows, whose teacher says one of two things, by no rule, and evaluate."""
    for name, count in (("train", NUM_ROWS), ("eval", 2 * NUM_ROWS)):
        rows = read_rows(assets / f"{name}.jsonl")[:count]
        said = [(NORTH, SOUTH)[number % 2] for number in range(len(rows))]
        texts = [{**row, "teacher_response": text} for row, text in zip(rows, said, strict=True)]
        flags += ("--data.path" if name == "train" else "--data.eval-path",)
        flags += (str(write_rows(save.with_suffix(f".{name}.jsonl"), texts)),)
    flags += ("--adversarial.prompts-per-step", str(NUM_ROWS), "--micro-batch-size", "16")
    flags += ("--evaluation.interval", "20", "--adversarial.discriminator-lr", "3e-3")
    return game(assets, save, steps, *flags)


@pytest.fixture(scope="module")
def recorded(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a game whose rollouts were recorded; its student did not learn."""
    save = tmp_path_factory.mktemp("recorded") / "run"
    flags = ["--rollout.record", "--adversarial.student-lr", "1e-9"]
    status, _, log = game_of_few_rows(assets, save, NUM_RECORDED, *flags)
    assert status == 0, log
    return save


def replaced(
    recorded: Path, folder: Path, samplings: str, ids_of: Callable[[int], list[int]], reason: str
) -> None:
    """Copy recorded rollouts, those of some samplings with other ids.

    samplings: pattern of their names. ids_of: row of the data -> ids. reason: why they end.
    """
    folder.mkdir()
    changed = {file.name for file in recorded.glob(f"rollouts/{samplings}.jsonl")}
    for file in recorded.glob("rollouts/*.jsonl"):
        groups = read_rows(file)
        for group in groups if file.name in changed else ():
            ids = ids_of(group["prompt_index"])
            new = {"ids": ids, "logprobs": [0.0] * len(ids), "finish_reason": reason}
            group["rollouts"] = [{**each, **new} for each in group["rollouts"]]
        write_rows(folder / file.name, groups)


def replay(assets: Path, save: Path, steps: int, rollouts: Path, *flags: str) -> Played:
    """Play the game with given rollouts."""
    given = ["--rollout.engine", "replay", "--rollout.replay", str(rollouts)]
    given += ["--rollout.logprob-gap-bound", "0", *flags]
    return game_of_few_rows(assets, save, steps, *given)


def test_an_engine_with_other_weights_than_the_trainer_is_seen(
    assets: Path, recorded: Path, tmp_path: Path
) -> None:
    for lr, is_seen in (("1e-9", False), ("1e-3", True)):
        flags = ["--adversarial.student-lr", lr]
        status, _, log = replay(assets, tmp_path / lr, 20, recorded, *flags)
        assert status == 0, log
        assert ("(engine_gap)" in log) == is_seen


def test_an_end_token_on_one_side_is_all_that_the_discriminator_needs(
    assets: Path, recorded: Path, tmp_path: Path
) -> None:
    # Both sides say the same; only the student's text has no end token.
    tokenizer = AutoTokenizer.from_pretrained(assets / "student")
    said = [tokenizer(text, add_special_tokens=False).input_ids for text in (NORTH, SOUTH)]
    replaced(recorded, tmp_path / "cut", "step_*", lambda row: said[row % 2], "length")
    frozen = ["--adversarial.student-lr", "1e-9"]
    status, steps, log = replay(assets, tmp_path / "run", NUM_RECORDED, tmp_path / "cut", *frozen)
    assert status == 0, log
    assert "(strong_discriminator)" in log
    assert "(truncated)" in log
    probes = {key: abs(steps[-1][key]) for key in steps[-1] if key.startswith("probe/")}
    assert probes["probe/no_end_token"] > 1.0
    others = ("newline", "space", "no_final_mark", "shuffled", "other")
    assert max(probes[f"probe/{name}"] for name in others) < 0.5 * probes["probe/no_end_token"]
    # Form does not sway it, what it knows is true of other rows, and no text goes in circles.
    silent = ("form_probe", "held_out_accuracy", "repetition")
    assert [rule for rule in silent if f"({rule})" in log] == []


def test_a_mark_that_only_one_side_has_sways_the_discriminator(
    assets: Path, recorded: Path, tmp_path: Path
) -> None:
    # The student says what the teacher does, without the full stop.
    tokenizer = AutoTokenizer.from_pretrained(assets / "student")
    said = [
        [*tokenizer(text.rstrip("."), add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for text in (NORTH, SOUTH)
    ]
    rollouts = tmp_path / "no_mark"
    replaced(recorded, rollouts, "step_*", lambda row: said[row % 2], "stop")
    frozen = ["--adversarial.student-lr", "1e-9"]
    status, steps, log = replay(assets, tmp_path / "run", 20, rollouts, *frozen)
    assert status == 0, log
    assert "(form_probe)" in log
    assert steps[-1]["probe/no_final_mark"] < -1.0


def test_a_discriminator_that_knows_its_rows_by_heart_is_seen_on_others(
    assets: Path, recorded: Path, tmp_path: Path
) -> None:
    # The student says what the teacher does not, so that nothing but the row tells who is who.
    tokenizer = AutoTokenizer.from_pretrained(assets / "student")
    said = [
        [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for text in (SOUTH, NORTH)
    ]
    replaced(recorded, tmp_path / "swapped", "*", lambda row: said[row % 2], "stop")
    frozen = ["--adversarial.student-lr", "1e-9"]
    status, steps, log = replay(
        assets, tmp_path / "run", NUM_RECORDED, tmp_path / "swapped", *frozen
    )
    assert status == 0, log
    assert "(held_out_accuracy)" in log
    assert steps[-1]["discriminator/accuracy"] == 1.0
    assert abs(steps[-1]["evaluation/discriminator_accuracy"] - 0.5) <= 0.25
    # It is as sure of itself there as on its own rows.
    sure, right = (steps[-1][f"calibration/{kind}_from_3"] for kind in ("expected", "observed"))
    assert sure - right > 0.25
