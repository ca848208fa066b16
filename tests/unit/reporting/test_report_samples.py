"""The samples shown are those in which one sees the student change."""

from typing import Any

import pytest

from megatron_gad.config.output import LogConfig
from megatron_gad.reporting.run_record import read_run
from megatron_gad.reporting.samples import choose_samples
from megatron_gad.runtime.metrics import MetricsWriter
from tests.unit.reporting.synthetic_run import write_run


def rollout(text: str, score: float, advantage: float = 0.0) -> dict:
    numbers = {"score": score, "advantage": advantage, "length": 3}
    return {"text": text, **numbers, "finish_reason": "stop"}


def write_samples(folder, step: int, rows: list[dict]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").touch()
    writer = MetricsWriter(folder, LogConfig(tensorboard=False), is_writer=True)
    writer.write_samples(step, "adversarial", rows)


def test_the_first_the_last_and_some_between_of_every_stage(tmp_path):
    folder = write_run(tmp_path / "run", steps=(1, 2, 3))
    for step in range(10, 40):
        write_samples(folder, step, [{"prompt": "p", "teacher": "t", "rollouts": []}])
    chosen = [sampled.step for sampled in choose_samples(read_run(folder))]
    # Beyond the last line of metrics.jsonl no stage is known: that is one stage more.
    assert chosen == [2, 3, 4, 5, 6, 10, 13, 15, 18, 21, 23, 26, 28, 31, 34, 36, 39]


def test_best_and_worst_rollouts_are_shown(tmp_path):
    rollouts = [rollout(f"text {score}", score) for score in (1.0, 5.0, -2.0, 3.0, 0.0, 4.0)]
    write_samples(tmp_path, 3, [{"prompt": "p", "teacher": "t", "rollouts": rollouts}])
    (sampled,) = choose_samples(read_run(tmp_path))
    (prompt,) = sampled.prompts
    assert [shown.score for shown in prompt.rollouts] == ["+5.00", "+4.00", "+0.00", "-2.00"]
    assert prompt.rollouts[0].text == "text 5.0"
    assert prompt.num_hidden == 2


def test_the_sign_of_the_advantage_gives_the_direction(tmp_path):
    rollouts = [rollout("a", 3.0, 1.5), rollout("b", 2.0, 0.0), rollout("c", 1.0, -1.5)]
    write_samples(tmp_path, 3, [{"prompt": "p", "teacher": "t", "rollouts": rollouts}])
    shown = choose_samples(read_run(tmp_path))[0].prompts[0].rollouts
    assert [(r.direction, r.advantage) for r in shown] == [
        ("up", "+1.50"),
        ("", "+0.00"),
        ("down", "-1.50"),
    ]


def test_prompts_that_come_back_are_preferred(tmp_path):
    for step, names in ((1, ("a", "b", "c", "x", "same")), (2, ("d", "same", "e", "f"))):
        rows = [{"prompt": name, "teacher": "t", "rollouts": []} for name in names]
        write_samples(tmp_path, step, rows)
    chosen = [[p.prompt for p in s.prompts] for s in choose_samples(read_run(tmp_path))]
    assert chosen == [["same", "a", "b", "c"], ["same", "d", "e", "f"]]


def test_missing_and_non_finite_numbers_are_shown_as_they_are(tmp_path):
    rollouts = [{"text": "a"}, rollout("b", float("nan"))]
    write_samples(tmp_path, 3, [{"prompt": "p", "rollouts": rollouts}])
    prompt = choose_samples(read_run(tmp_path))[0].prompts[0]
    assert prompt.teacher == ""
    assert [(r.text, r.score, r.length) for r in prompt.rollouts] == [
        ("a", "", ""),
        ("b", "nan", "3"),
    ]


def test_what_every_other_reward_gave_is_shown(tmp_path):
    rewards = {"format": 1.0, "discriminator": 0.4, "tests": float("nan")}
    rollouts = [rollout("a", 0.4) | {"rewards": rewards}, rollout("b", 0.1)]
    write_samples(tmp_path, 3, [{"prompt": "p", "teacher": "t", "rollouts": rollouts}])
    shown = choose_samples(read_run(tmp_path))[0].prompts[0].rollouts
    assert [each.rewards for each in shown] == ["format +1.00, tests nan", ""]


def sampled_tokens(folder, text: str, tokens: Any) -> Any:
    """Return the only prompt, whose only rollout has these tokens."""
    rollouts = [rollout(text, 1.0) | {"tokens": tokens}]
    write_samples(folder, 3, [{"prompt": "p", "teacher": "t", "rollouts": rollouts}])
    return choose_samples(read_run(folder))[0].prompts[0]


def test_tokens_are_coloured_by_their_value_against_the_others_of_the_prompt(tmp_path):
    tokens = [["a", 2.0], [" b", -1.0], ["c", 0.1], [None, -2.0]]
    prompt = sampled_tokens(tmp_path, "a bc", tokens)
    shown = prompt.rollouts[0].tokens
    assert [(each.text, each.value, each.level, each.is_end) for each in shown] == [
        ("a", "+2", "u5", False),
        (" b", "-1", "d2", False),  # half of 2.0 is 2.5 steps of 5
        ("c", "+0.1", "", False),
        ("", "-2", "d5", True),
    ]
    assert prompt.scale.ends == ("-2", "+2")
    assert prompt.teacher_tokens == ()


def test_one_token_beyond_all_others_does_not_take_their_colours(tmp_path):
    prompt = sampled_tokens(tmp_path, "a" * 40, [["a", 1.0]] * 39 + [["a", 100.0]])
    assert prompt.scale.ends == ("-1", "+1")
    assert {each.level for each in prompt.rollouts[0].tokens} == {"u5"}


def test_tokens_of_one_character_are_shown_as_one(tmp_path):
    tokens = [["a", 1.0], ["", 0.5], ["", -2.0], ["é", 1.0]]
    shown = sampled_tokens(tmp_path, "aé", tokens).rollouts[0].tokens
    assert [(each.text, each.value) for each in shown] == [("a", "+1"), ("é", "-0.5")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<think>ab</think>ab", ["<think>ab</think>", "a", "b"]),
        ("abab and what was cut", ["a", "b", "ab and what was cut"]),
        ("other letters", ["a", "b"]),
    ],
)
def test_what_the_discriminator_did_not_read_has_no_colour(tmp_path, text, shown):
    found = sampled_tokens(tmp_path, text, [["a", 1.0], ["b", 1.0]]).rollouts[0].tokens
    assert [each.text for each in found] == shown
    assert [each.text for each in found if each.value] == ["a", "b"]


@pytest.mark.parametrize(
    "tokens",
    [
        None,
        3,
        {"a": 1},
        [["a"]],
        [["a", "b"]],
        [[1, 1.0]],
        [["a", True]],
        ["ab"],
        [["a", float("nan")]],
        [],
    ],
)
def test_tokens_that_cannot_be_read_leave_the_text(tmp_path, tokens):
    prompt = sampled_tokens(tmp_path, "text", tokens)
    assert (prompt.rollouts[0].text, prompt.rollouts[0].tokens) == ("text", ())
    assert prompt.scale is None


def test_a_page_of_very_many_tokens_has_colours_at_the_ends_of_its_stages(tmp_path):
    tokens = [["a", 1.0]] * 45_000
    rollouts = [rollout("a" * 45_000, 1.0) | {"tokens": tokens}]
    for step in (1, 2, 3):
        write_samples(tmp_path, step, [{"prompt": "p", "teacher": "t", "rollouts": rollouts}])
    shown = [sampled.prompts[0] for sampled in choose_samples(read_run(tmp_path))]
    assert [len(prompt.rollouts[0].tokens) for prompt in shown] == [45_000, 0, 45_000]
    assert [prompt.scale is None for prompt in shown] == [False, True, False]
    assert shown[1].rollouts[0].text == "a" * 45_000


def test_tokens_that_are_worth_nothing_have_no_colour(tmp_path):
    prompt = sampled_tokens(tmp_path, "a", [["a", 0.0]])
    assert [(each.value, each.level) for each in prompt.rollouts[0].tokens] == [("+0", "")]


def test_samples_that_are_no_list_are_left_out(tmp_path):
    write_samples(tmp_path, 3, [{"prompt": "p", "teacher": "t", "rollouts": None}])
    (sampled,) = choose_samples(read_run(tmp_path))
    assert sampled.prompts[0].rollouts == ()
