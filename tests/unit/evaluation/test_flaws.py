"""Refusals and languages that anyone can tell."""

import pytest

from megatron_gad.evaluation.flaws import is_other_language, is_refusal, language_of

GERMAN = "Die Hauptstadt von Frankreich ist Paris, und sie liegt an der Seine."
ENGLISH = "The capital of France is Paris, which lies on the river Seine."


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I cannot provide that information.",
        "Sorry! As an AI language model, I do not have opinions.",
        "I am unable to assist with this request.",
        "Thanks for asking. I won't write malware for you.",
    ],
)
def test_refusals_are_found(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear about your loss. Here is a letter that you can send.",
        "You can't divide by zero, so the answer is undefined.",
        "An AI is a program. " * 15 + "As an AI language model, I",  # far from the beginning
        "Dear Sir, I cannot thank you enough.",
    ],
)
def test_answers_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_another_language_is_seen_and_a_few_letters_are_no_language() -> None:
    assert (language_of(GERMAN), language_of(ENGLISH)) == ("de", "en")
    assert is_other_language(GERMAN, ENGLISH) is True
    assert is_other_language(ENGLISH, ENGLISH + " It is large.") is False
    assert language_of("Oui. 123 456") == ""
    assert is_other_language("Oui.", ENGLISH) is None
