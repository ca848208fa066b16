"""What can be wrong with an answer at first sight: it refuses, is blank, or in another language."""

import re

import py3langid

FIRST_CHARACTERS = 200  # a refusal comes at once
FEWEST_LETTERS = 30  # of fewer the language is a guess

_REFUSAL = re.compile(
    r"\b(?:as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|i(?:'m| am) (?:just )?an? (?:ai|(?:large )?language model)\b"
    r"|i(?:'m| am) (?:(?:very |so |really )?sorry|afraid),? (?:but )?(?:that )?i"
    r"(?:'m unable| am unable|'m not able| am not able| can ?not| can't| won't| do not| don't)"
    r"|i (?:can ?not|can't|won't|will not|must decline to|am unable to|'m unable to)"
    r" (?:assist|help|provide|fulfil|comply|answer|engage|create|generate|write|offer|do that)"
    r"|i(?:'m| am) (?:unable|not able) to (?:assist|help|provide|fulfil|comply|answer))",
    re.IGNORECASE,
)
_APOSTROPHES = str.maketrans({0x2018: "'", 0x2019: "'"})


def is_refusal(text: str) -> bool:
    """Say whether an answer begins by declining, in the English words that models use for it.

    A heuristic: refusals in other languages and unusual words are not found.
    """
    return bool(_REFUSAL.search(text[:FIRST_CHARACTERS].translate(_APOSTROPHES)))


def language_of(text: str) -> str:
    """Return the language that a text is most likely in, like "en"; empty if it is too short."""
    letters = sum(map(str.isalpha, text))
    return py3langid.classify(text)[0] if letters >= FEWEST_LETTERS else ""


def is_other_language(text: str, reference: str) -> bool | None:
    """Say whether two texts are in different languages; None if one is too short to tell."""
    languages = language_of(text), language_of(reference)
    return languages[0] != languages[1] if all(languages) else None
