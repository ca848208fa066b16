"""Damages to bytes and to JSON, drawn at random."""

import random
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, -5, 10**9, 2**63, 10**400, 1.5, -0.0, 1e308, float("nan")),
    *(float("inf"), "", "nan", "text", "\ud800", "\0", [], {}, [None], {"a": 1}, [[1]]),
)


def damaged_bytes(draw: random.Random, content: bytes) -> bytes:
    """Return other bytes: fewer, more, or some of them changed."""
    where = draw.randrange(len(content) or 1)
    kind = draw.random()
    if kind < 0.25:
        return content[:where]
    if kind < 0.35:
        return b""
    if kind < 0.5:
        return bytes(len(content))
    if kind < 0.6:
        return content + draw.randbytes(10)
    flipped = content[where : where + 1] or b"\0"
    return content[:where] + bytes([flipped[0] ^ (1 << draw.randrange(8))]) + content[where + 1 :]


def damaged_json(draw: random.Random, value: Any) -> tuple[Any, str]:
    """Return a value with something odd at one of its places, and what in words."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice([*value])
        kind = draw.random()
        if kind < 0.15:
            return {k: v for k, v in value.items() if k != key}, f"no {key}"
        inner, what = damaged_json(draw, value[key])
        return value | {key: inner}, f"{key}: {what}"
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        inner, what = damaged_json(draw, value[place])
        return [*value[:place], inner, *value[place + 1 :]], f"[{place}]: {what}"
    odd = draw.choice(ODD)
    return odd, repr(odd)[:80]
