"""Checkers on texts that anyone can judge, and the set of prompts that goes with them."""

import json
import re
from pathlib import Path

import pytest

from megatron_gad.evaluation.instructions.accuracy import instruction_accuracy, read_instructions
from megatron_gad.evaluation.instructions.checkers import CHECKERS, fulfils, fulfils_loosely
from megatron_gad.types import Instructed

GERMAN = "Der Wald ist im Herbst bunt, und die Blätter fallen langsam zu Boden."
TABLE = "| a | b |\n|---|:-:|\n| 1 | 2 |"
# check, a text that fulfils it, one that does not
CASES = [
    ({"check": "words", "at_least": 2, "at_most": 3}, "one, two three", "one two three four"),
    ({"check": "sentences", "at_least": 2, "at_most": 2}, "It is 3.5 m. Right?", "Yes."),
    ({"check": "paragraphs", "exactly": 2}, "a\nb\n\n \nc", "a\nb"),
    ({"check": "lines", "exactly": 2}, "a\n\nb\n", "a\nb\nc"),
    ({"check": "bullets", "exactly": 2}, "List:\n- a\n * b", "- a\n-b"),
    ({"check": "numbered", "exactly": 2}, "1. a\n2) b", "1. a\n3. b"),
    ({"check": "headings", "exactly": 1}, "# a\ntext #b", "# a\n## b"),
    ({"check": "table", "columns": 2}, f"See:\n{TABLE}", TABLE.replace("|---|:-:|\n", "")),
    ({"check": "table", "columns": 2}, TABLE, f"{TABLE}\n| 3 | 4 | 5 |"),
    ({"check": "json", "keys": ["a"]}, '{"a": 1}', '{"a": 1, "b": 2}'),
    ({"check": "json", "keys": ["a"]}, '```json\n{"a": 1}\n```', 'Here: {"a": 1}'),
    ({"check": "json", "items": 2}, "[1, 2]", '{"a": 1, "b": 2}'),
    ({"check": "keywords", "all_of": ["salt"]}, "Salt!", "salty"),
    ({"check": "forbidden", "none_of": ["ice"]}, "nice", "Ice."),
    ({"check": "forbidden", "none_of": ["ice"]}, "x", " "),
    ({"check": "occurrences", "word": "a b", "exactly": 2}, "a b, A b", "a b a bb"),
    ({"check": "lowercase"}, "all small, 1", "Not small"),
    ({"check": "uppercase"}, "LOUD 1", "Loud"),
    ({"check": "starts_with", "phrase": "Dear"}, "\nDear Sam", "My Dear"),
    ({"check": "ends_with", "phrase": "End."}, "The End.\n", "End. Really."),
    ({"check": "without", "characters": ",1"}, "none", "one, two"),
    ({"check": "quoted"}, '"all of it"', '"a" b'),
    ({"check": "titled"}, "<<A title>> text", "<A title>"),
    ({"check": "placeholders", "at_least": 2}, "[a] and [b c]", "[a] and []"),
    ({"check": "one_of", "choices": ["Yes.", "No."]}, " Yes.\n", "Yes. It is."),
    ({"check": "language", "code": "de"}, GERMAN, "The forest is full of colours in the autumn."),
]


@pytest.mark.parametrize(("check", "right", "wrong"), CASES)
def test_a_checker_tells_right_from_wrong(check: dict, right: str, wrong: str) -> None:
    assert fulfils(right, check)
    assert not fulfils(wrong, check)
    assert fulfils_loosely(right, check)


def test_every_checker_has_a_case() -> None:
    assert {case[0]["check"] for case in CASES} == {*CHECKERS}


def test_loose_forgives_an_introduction_an_ending_and_emphasis() -> None:
    check = {"check": "json", "keys": ["a"]}
    for text in ('Sure:\n{"a": 1}', '{"a": 1}\nEnjoy!', 'Sure:\n{"a": 1}\nEnjoy!', '**{"a": 1}**'):
        assert not fulfils(text, check)
        assert fulfils_loosely(text, check)
    assert not fulfils_loosely('Sure, here it is: {"a": 1}', check)
    assert not fulfils_loosely("one line", {"check": "without", "characters": "i"})


def test_accuracy_counts_prompts_of_which_all_is_fulfilled() -> None:
    small, short = {"check": "lowercase"}, {"check": "words", "at_most": 2}
    instructions = [Instructed(str(n), "?", (small, short)) for n in range(4)]
    answers = ["a b", "A b", "a b c", "Sure!\na b"]  # strict, neither, neither, loose alone
    found = instruction_accuracy(instructions, answers)
    assert (found.strict.mean, found.loose.mean) == (0.25, 0.5)
    assert found.by_kind["lowercase"].mean == 0.5
    assert found.by_kind["words"].mean == 0.5
    assert found.by_kind["words"].count == 4


def test_the_set_says_what_it_checks() -> None:
    instructions = read_instructions()
    assert len({each.prompt for each in instructions}) == len(instructions) == 60
    assert {check["check"] for each in instructions for check in each.checks} == {*CHECKERS}
    for each in instructions:
        for check in each.checks:
            for name, value in check.items():
                is_word = name in ("all_of", "none_of", "word", "keys", "phrase")
                for one in [value] if isinstance(value, str) else value if is_word else []:
                    assert not is_word or one in each.prompt, (each.id, one)
                is_count = isinstance(value, int) and name in ("exactly", "items", "columns")
                assert not is_count or value == 0 or str(value) in each.prompt, (each.id, check)
            if "at_most" in check and check["check"] == "words" and check["at_most"] != 40:
                assert re.search(rf"\b{check['at_most']} words|\b{check['at_most']}\b", each.prompt)


def test_a_bad_set_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    row = {"id": 1, "prompt": "?", "checks": [{"check": "wordz"}]}
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match="line 1: KeyError: 'wordz'"):
        read_instructions(path)
    row["checks"] = [{"check": "words", "most": 3}]
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match="unexpected keyword argument 'most'"):
        read_instructions(path)
    # A number as text would fail at the first answer that is long enough.
    row["checks"] = [{"check": "words", "at_least": 120, "at_most": "140"}]
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"line 1: ValidationError: .*\n.*valid integer"):
        read_instructions(path)
    row |= {"prompt": 7, "checks": [{"check": "lowercase"}]}
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match="the prompt is no text"):
        read_instructions(path)
    for key in ("id", "prompt"):
        path.write_text(json.dumps(row | {"prompt": "?", key: "no \ud800"}))
        with pytest.raises(ValueError, match=r"line 1: UnicodeEncodeError: .*surrogates"):
            read_instructions(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="line 1: RecursionError"):
        read_instructions(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no instructions"):
        read_instructions(path)
    with pytest.raises(ValueError, match=r"nowhere.jsonl cannot be read"):
        read_instructions(tmp_path / "nowhere.jsonl")


def test_a_prompt_may_hold_what_ends_a_line_of_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    prompts = ["one\u2028two", "three\x85four"]
    rows = [{"id": p, "prompt": p, "checks": [{"check": "lowercase"}]} for p in prompts]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    assert [each.prompt for each in read_instructions(path)] == prompts
