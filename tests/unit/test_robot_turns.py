"""The quickstart's task: its teacher, its checker, its splits."""

import math
from collections import Counter

import pytest

from examples.quickstart.robot_turns import (
    all_prompts,
    check,
    report,
    split_prompts,
    teacher_answer,
)

# west, right: north, right: east, back: west, right: north, right: east, right: south
PROMPT = "face west turn right right back right right right"
WORKING = "west right north right east back west right north right east right south"
COMPASS = {"north": 1j, "east": 1 + 0j, "south": -1j, "west": -1 + 0j}
ROTATION = {"left": 1j, "right": -1j, "back": -1 + 0j}


@pytest.mark.parametrize(
    ("layout", "response"),
    [
        ("because", f"facing south, because {WORKING}."),
        ("steps", f"from {WORKING}, so south."),
        ("list", f"* {WORKING} > south"),
    ],
)
def test_a_right_answer_is_right_in_each_layout(layout: str, response: str) -> None:
    verdict = check(PROMPT, response)
    assert (verdict.layout, verdict.is_right) == (layout, True)


@pytest.mark.parametrize(
    ("layout", "response"),
    [
        # The answer up front contradicts the working, which is right.
        ("because", f"facing west, because {WORKING}."),
        # Both copies agree and are wrong.
        ("because", f"facing east, because {WORKING[:-5]}east."),
        # One step is wrong, the answer is right.
        ("because", f"facing south, because {WORKING.replace('back west', 'back north')}."),
        ("steps", f"from {WORKING}, so north."),
        ("steps", f"from {WORKING.replace('right east', 'right west', 1)}, so south."),
        # Another turn than the prompt's.
        ("steps", f"from {WORKING.replace('back', 'left')}, so south."),
        ("list", f"* {WORKING} > west"),
        # A step is missing; another is made up.
        ("list", "* west right north right east back west right north right east > east"),
        ("list", f"* {WORKING} back north > north"),
        # The working starts elsewhere.
        ("list", f"* north{WORKING[4:]} > south"),
    ],
)
def test_a_wrong_answer_is_wrong_in_each_layout(layout: str, response: str) -> None:
    verdict = check(PROMPT, response)
    assert (verdict.layout, verdict.is_right) == (layout, False)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "south",
        f"facing south, because {WORKING}",  # no full stop
        f"facing south because {WORKING}.",
        f" facing south, because {WORKING}.",
        f"facing south, because {WORKING}. ",
        f"facing south, because {WORKING}.\n",
        f"facing south, because {WORKING}, so south.",  # two layouts in one
        f"from {WORKING} > south",
        f"* {WORKING} > south.",
        f"* {WORKING} > south* {WORKING} > south",
        f"* {WORKING.replace(' ', '  ', 1)} > south",
        f"* {WORKING} > up",
        "* west > west",  # no step at all
        "from west right, so north.",
    ],
)
def test_text_outside_the_layouts_has_none(response: str) -> None:
    verdict = check(PROMPT, response)
    assert (verdict.layout, verdict.is_right) == (None, False)


def test_the_answer_to_another_prompt_is_wrong() -> None:
    other = "face west turn right right back right right left"
    assert not check(other, f"* {WORKING} > south").is_right


def test_there_are_3888_prompts() -> None:
    prompts = all_prompts()
    assert len(prompts) == len(set(prompts)) == 4 * (3**5 + 3**6) == 3888
    assert PROMPT in prompts


def test_the_teacher_is_always_right() -> None:
    assert all(check(p, teacher_answer(p, seed=0)).is_right for p in all_prompts())


def test_the_teacher_agrees_with_rotations_in_the_complex_plane() -> None:
    for prompt in all_prompts():
        _, start, _, *turns = prompt.split()
        heading = COMPASS[start]
        for turn in turns:
            heading *= ROTATION[turn]
        words = teacher_answer(prompt, seed=1).replace(".", "").replace(",", "").split()
        answer = words[1] if words[0] == "facing" else words[-1]
        assert COMPASS[answer] == heading


def test_layout_shares_are_a_half_and_two_quarters() -> None:
    for seed in range(3):
        train = split_prompts(seed).train
        layouts = Counter(check(p, teacher_answer(p, seed)).layout for p in train)
        # Five standard deviations of a share of 2,500 draws.
        for layout, share in {"because": 0.5, "steps": 0.25, "list": 0.25}.items():
            bound = 5 * math.sqrt(share * (1 - share) / 2500)
            assert layouts[layout] / 2500 == pytest.approx(share, abs=bound)


def test_layouts_depend_on_the_seed_and_nothing_else() -> None:
    prompts = all_prompts()[:200]
    first = [teacher_answer(prompt, seed=5) for prompt in prompts]
    assert first == [teacher_answer(prompt, seed=5) for prompt in reversed(prompts)][::-1]
    assert first != [teacher_answer(prompt, seed=6) for prompt in prompts]


def test_the_splits_are_disjoint_and_seeded() -> None:
    split = split_prompts(seed=3)
    parts = [split.train, split.validation, split.test]
    assert [len(part) for part in parts] == [2500, 300, 400]
    assert len(set().union(*parts)) == 3200
    assert set().union(*parts) < set(all_prompts())
    assert split == split_prompts(seed=3)
    assert split.test != split_prompts(seed=4).test


def test_a_report_of_four_responses_is_as_counted_by_hand() -> None:
    responses = [
        f"facing west, because {WORKING}.",  # wrong, 18 words and marks
        f"facing south, because {WORKING}.",  # right, 18
        f"* {WORKING} > south",  # right, 16
        "west ,",  # no layout, 2
    ]
    summary = report([PROMPT] * 4, responses)
    assert summary == {
        "num_responses": 4,
        "accuracy": 0.5,
        "layout_shares": {"because": 0.5, "steps": 0.0, "list": 0.25, "none": 0.25},
        "accuracy_by_layout": {"because": 0.5, "steps": None, "list": 1.0},
        "length_mean": (18 + 18 + 16 + 2) / 4,
        "layout_entropy": pytest.approx(math.log(3) - 2 / 3 * math.log(2)),
    }


def test_a_report_of_the_teacher_is_right_in_every_layout() -> None:
    prompts = split_prompts(seed=0).test
    summary = report(prompts, [teacher_answer(prompt, seed=0) for prompt in prompts])
    assert summary["accuracy"] == 1.0
    assert summary["accuracy_by_layout"] == {"because": 1.0, "steps": 1.0, "list": 1.0}


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="'face up turn left' is no prompt"):
        check("face up turn left", "* west left south > south")
    with pytest.raises(ValueError, match="1 prompts and 2 responses"):
        report([PROMPT], ["a", "b"])
    with pytest.raises(ValueError, match="at least one"):
        report([], [])
    with pytest.raises(ValueError, match="only 3888 prompts"):
        split_prompts(seed=0, num_train=4000)
