"""The tokens of a response, coloured by what the discriminator made of each."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_gad.reporting.run_record import is_finite_number

# Steps of colour on either side of zero.
LEVELS = 5
# Of all sizes, this share is told apart by colour; the few beyond would leave the rest pale.
COLOURED_SHARE = 0.95


@dataclass(frozen=True)
class Token:
    """A token as the run recorded it, with those before it that only began its character.

    value: the sum of theirs. is_end: it is the end token, which has no text.
    """

    text: str
    value: float
    is_end: bool = False


@dataclass(frozen=True)
class ShownToken:
    """A token as shown.

    value: as text; "" for text that the discriminator did not read.
    level: "u1" to "u5" above zero, "d1" to "d5" below, "" for no colour.
    """

    text: str
    value: str = ""
    level: str = ""
    is_end: bool = False


@dataclass(frozen=True)
class Scale:
    """The colours of one prompt's tokens. bound: the size from which on colour is strongest."""

    bound: float

    def level(self, value: float) -> str:
        """Return the colour of a value."""
        step = round(LEVELS * min(1.0, abs(value) / self.bound)) if self.bound else 0
        return f"{'u' if value > 0 else 'd'}{step}" if step else ""

    @property
    def swatches(self) -> list[str]:
        """The colours from the lowest value to the highest."""
        sizes = range(1, LEVELS + 1)
        return [*(f"d{size}" for size in reversed(sizes)), "", *(f"u{size}" for size in sizes)]

    @property
    def ends(self) -> tuple[str, str]:
        """The values at which the colours end."""
        return _signed(-self.bound), _signed(self.bound)


def read_tokens(found: Any) -> list[Token]:
    """Return the tokens of a response from its sample; none if they cannot be read."""
    tokens: list[Token] = []
    begun = 0.0
    for entry in found if isinstance(found, list) else ():
        if not _is_token(entry):
            return []
        text, value = entry
        begun += value
        if text != "":
            tokens.append(Token(text or "", begun, is_end=text is None))
            begun = 0.0
    return tokens


def scale_of(responses: Iterable[Sequence[Token]]) -> Scale | None:
    """Return the scale for the responses to one prompt; None if they have no tokens."""
    sizes = sorted(abs(token.value) for tokens in responses for token in tokens)
    if not sizes:
        return None
    usual = sizes[math.floor(COLOURED_SHARE * (len(sizes) - 1))]
    return Scale(usual or sizes[-1])


def shown_tokens(text: str, tokens: Sequence[Token], scale: Scale | None) -> tuple[ShownToken, ...]:
    """Return tokens as shown, with what of the text the discriminator did not read around them.

    It reads no reasoning that is stripped, and only the beginning of what was cut.
    """
    if scale is None or not tokens:
        return ()
    read = "".join(token.text for token in tokens)
    before, _, after = text.rpartition(read) if read and read in text else ("", "", "")
    if text.startswith(read):
        before, after = "", text[len(read) :]
    shown = [
        ShownToken(token.text, _signed(token.value), scale.level(token.value), token.is_end)
        for token in tokens
    ]
    return tuple(each for each in (ShownToken(before), *shown, ShownToken(after)) if _is_seen(each))


def _is_token(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    text, value = entry
    return is_finite_number(value) and (text is None or isinstance(text, str))


def _is_seen(token: ShownToken) -> bool:
    return bool(token.text) or token.is_end


def _signed(value: float) -> str:
    return f"{value:+.2g}"
