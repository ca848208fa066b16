"""The judge over real HTTP: what it is asked, how often, and what becomes of its words."""

from pathlib import Path

import pytest

from megatron_gad.evaluation.judge.pairwise import Orders, Pair, compare, orders, read_winner
from megatron_gad.evaluation.judge.prompt_files import JudgePrompts, conversation_text
from megatron_gad.evaluation.judge.rating import Rating, rate, read_rating
from tests.unit.evaluation.judging import judge_server, open_judge, part

QUESTIONS = ["What is 1 + 1?", "What is 2 + 2?", "Name a colour."]
NOWHERE = "http://127.0.0.1:9/v1"


def longer_wins(prompt: str, attempt: int) -> str:
    """Say that the longer answer is better."""
    a, b = len(part(prompt, "answer_a")), len(part(prompt, "answer_b"))
    return f"Compared.\n[[{'C' if a == b else 'A' if a > b else 'B'}]]"


def test_a_pair_is_judged_in_both_orders(tmp_path: Path) -> None:
    with judge_server(longer_wins) as server, open_judge(tmp_path / "j", server.base_url) as judge:
        found = compare(
            judge,
            JudgePrompts(),
            QUESTIONS,
            {"m": ["long answer", "x", "same"]},
            ["b", "yy", "four"],
        )
        assert found == {"m": [Pair(1.0, 1.0), Pair(0.0, 0.0), Pair(0.5, 0.5)]}
        shown = [
            (part(text, "answer_a"), part(text, "answer_b"))
            for text in (body["messages"][-1]["content"] for body in server.bodies)
        ]
        assert {("long answer", "b"), ("b", "long answer")} <= {*shown}
        assert len(shown) == 6
    assert orders(found["m"]) == Orders(disagreement=0.0, first_wins=0.5)


def test_a_judge_that_likes_the_first_answer_shows_as_noise(tmp_path: Path) -> None:
    with (
        judge_server(lambda prompt, attempt: "[[A]]") as server,
        open_judge(tmp_path / "j", server.base_url) as judge,
    ):
        pairs = compare(judge, JudgePrompts(), QUESTIONS, {"m": ["a"] * 3}, ["b"] * 3)["m"]
    assert [pair.preference for pair in pairs if pair] == [0.5] * 3
    assert orders(pairs) == Orders(disagreement=1.0, first_wins=1.0)


def test_the_judge_answers_itself_and_then_rates_both(tmp_path: Path) -> None:
    def say(prompt: str, attempt: int) -> str:
        if "<answer_1>" not in prompt:
            return f"own answer to {part(prompt, 'conversation')}"
        assert part(prompt, "answer_1") == f"own answer to {part(prompt, 'conversation')}"
        return f"Fine.\n[[8, {len(part(prompt, 'answer_2'))}]]"

    with judge_server(say) as server, open_judge(tmp_path / "j", server.base_url) as judge:
        answers = {"s": ["xx", "xxxx", "xxxxxxxx"], "t": ["x", "x", "x"]}
        found = rate(judge, JudgePrompts(), QUESTIONS, answers)
        assert len(server.bodies) == 3 + 6
    assert [each.score for each in found["s"] if each] == pytest.approx([20.0, 100 / 3, 50.0])
    assert found["t"] == [Rating(8.0, 1.0)] * 3


def test_what_was_answered_is_replayed_without_a_network(tmp_path: Path) -> None:
    with judge_server(longer_wins) as server, open_judge(tmp_path / "j", server.base_url) as judge:
        first = compare(judge, JudgePrompts(), QUESTIONS, {"m": ["aa"] * 3}, ["b"] * 3)
        spent = judge.spent
    with open_judge(tmp_path / "j", NOWHERE) as judge:
        again = compare(judge, JudgePrompts(), QUESTIONS, {"m": ["aa"] * 3}, ["b"] * 3)
        replayed = judge.spent
    assert again == first
    assert (spent.num_calls, spent.num_replayed) == (6, 0)
    assert (replayed.num_calls, replayed.num_replayed) == (6, 6)
    assert (replayed.reasons, replayed.stopped) == ([], "")  # nothing was tried
    # 3 tokens in and 5 out each, at 1 and 2 a million.
    assert spent.cost == replayed.cost == pytest.approx(6 * 13e-6)
    assert (replayed.prompt_tokens, replayed.completion_tokens) == (18, 30)


def test_another_prompt_or_model_is_another_call(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pairwise.txt").write_text(
        "{{ conversation }}|{{ answer_a }}|{{ answer_b }}: [[A]], [[B]] or [[C]]?"
    )
    with judge_server(lambda prompt, attempt: "[[B]]") as server:
        for prompts in (JudgePrompts(), JudgePrompts(tmp_path / "mine")):
            with open_judge(tmp_path / "j", server.base_url) as judge:
                compare(judge, prompts, QUESTIONS[:1], {"m": ["a"]}, ["b"])
        asked = [body["messages"][-1]["content"] for body in server.bodies]
    assert len(asked) == 4
    assert asked[2:] in (
        [
            f"{QUESTIONS[0]}|a|b: [[A]], [[B]] or [[C]]?",
            f"{QUESTIONS[0]}|b|a: [[A]], [[B]] or [[C]]?",
        ],
        [
            f"{QUESTIONS[0]}|b|a: [[A]], [[B]] or [[C]]?",
            f"{QUESTIONS[0]}|a|b: [[A]], [[B]] or [[C]]?",
        ],
    )


def test_an_unreadable_verdict_is_asked_for_once_more_and_never_guessed(tmp_path: Path) -> None:
    def say(prompt: str, attempt: int) -> str:
        if "1 + 1" in prompt:
            return "Answer A seems better."  # every time
        if "2 + 2" in prompt and attempt == 1:
            return "[[A]] or rather [[B]]"
        return "[[A]]"

    with judge_server(say) as server:
        for _ in range(2):  # the second time everything is known
            with open_judge(tmp_path / "j", server.base_url) as judge:
                pairs = compare(judge, JudgePrompts(), QUESTIONS, {"m": ["a"] * 3}, ["b"] * 3)["m"]
                assert pairs == [None, Pair(1.0, 0.0), Pair(1.0, 0.0)]
                assert judge.spent.num_unreadable == 2
                assert judge.spent.num_calls == 2 * (2 + 2 + 1)
        assert len(server.bodies) == 10


def test_no_more_is_asked_once_max_cost_is_reached(tmp_path: Path) -> None:
    questions = [f"Question {number}" for number in range(30)]
    with judge_server(longer_wins) as server:
        with open_judge(tmp_path / "j", server.base_url, max_cost=10 * 13e-6) as judge:
            pairs = compare(judge, JudgePrompts(), questions, {"m": ["aa"] * 30}, ["b"] * 30)["m"]
            assert "max_cost" in judge.spent.stopped
            assert judge.spent.num_calls == 10  # as many as it pays for
            assert judge.spent.num_unanswered == 60 - judge.spent.num_calls
            assert None in pairs
        with open_judge(tmp_path / "j", server.base_url) as judge:
            pairs = compare(judge, JudgePrompts(), questions, {"m": ["aa"] * 30}, ["b"] * 30)["m"]
            assert None not in pairs
        assert len(server.bodies) == 60


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Good.\n[[8, 7.5]]", Rating(8.0, 7.5)),
        ("[[ 10 ,1 ]]", Rating(10.0, 1.0)),
        ("8, 7", None),
        ("[[8, 7]] no, [[7, 8]]", None),
        ("[[0, 7]]", None),
        ("[[8, 11]]", None),
        ("[[8]]", None),
    ],
)
def test_ratings_are_two_numbers_from_one_to_ten(text: str, rating: Rating | None) -> None:
    assert read_rating(text) == rating


def test_a_winner_is_named_once() -> None:
    assert [read_winner(t) for t in ("[[A]]", "x [[B]] y", "[[ C ]]")] == [1.0, 0.0, 0.5]
    assert [read_winner(t) for t in ("A", "[[A]] [[B]]", "", "[[D]]")] == [None] * 4


def test_prompts_that_leave_something_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds none of"):
        JudgePrompts(tmp_path)
    path = tmp_path / "rating.txt"
    path.write_text("{{ conversation }} {{ reference }}")
    with pytest.raises(ValueError, match=r"leaves out \{\{ answer \}\}"):
        JudgePrompts(tmp_path)
    path.write_text("{{ conversation }} {{ reference }} {{ answer }} {{ teacher }}")
    with pytest.raises(ValueError, match="'teacher' is undefined"):
        JudgePrompts(tmp_path)


def test_a_conversation_of_turns_names_them() -> None:
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert conversation_text(turns) == "[system]\nBe kind.\n\n[user]\nHi"
    assert conversation_text(turns[1:]) == "Hi"


def test_a_half_written_record_is_dropped_and_asked_for_again(tmp_path: Path) -> None:
    with judge_server(longer_wins) as server:
        with open_judge(tmp_path / "j", server.base_url) as judge:
            compare(judge, JudgePrompts(), QUESTIONS, {"m": ["aa"] * 3}, ["b"] * 3)
        whole = (tmp_path / "j").read_bytes()
        (tmp_path / "j").write_bytes(whole[:-10])
        with open_judge(tmp_path / "j", server.base_url) as judge:
            pairs = compare(judge, JudgePrompts(), QUESTIONS, {"m": ["aa"] * 3}, ["b"] * 3)["m"]
        assert len(server.bodies) == 7
    assert pairs == [Pair(1.0, 1.0)] * 3
    (tmp_path / "j").write_text("something else\n")
    with pytest.raises(ValueError, match="line 1: no record"), open_judge(tmp_path / "j", NOWHERE):
        pass
