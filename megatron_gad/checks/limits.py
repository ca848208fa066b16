"""What no setting may be, whichever it is; everything else is checked on what passes here."""

import math
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from megatron_gad.config.run import RunConfig

# Tensors count in 64 bits, and products of settings have to fit, too.
LARGEST = 2**53
PATH_BYTES, NAME_BYTES = 4096, 255
PATHS = (
    *("checkpoint.save", "checkpoint.load", "data.path", "data.eval_path", "student.path"),
    *("discriminator.path", "rollout.replay", "sglang.python", "evaluation.instructions"),
)


def check_limits(config: RunConfig) -> Iterator[str]:
    """Yield what neither the system nor arithmetic takes: of numbers, of texts and of paths."""
    for key, value in _settings(asdict(config)):
        if isinstance(value, int) and abs(value) > LARGEST:
            yield f"{key} is a number of {value.bit_length()} bits; give one up to {LARGEST}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{key} = {value} is not allowed; give a finite number"
        elif isinstance(value, str):
            yield from _of_text(key, value)


def _of_text(key: str, text: str) -> Iterator[str]:
    if "\0" in text or not _is_unicode(text):
        yield f"{key} = {text[:80]!r} holds a character that no file system takes; leave it out"
    elif key in PATHS:
        longest = max(len(os.fsencode(name)) for name in text.split("/"))
        length = len(os.fsencode(os.path.abspath(text))) if text else 0
        if longest > NAME_BYTES or length >= PATH_BYTES:
            yield (
                f"{key} = '{text[:40]}...' is a path of {length} bytes with a name of {longest}; "
                f"a file system takes {PATH_BYTES - 1} bytes, with names of up to {NAME_BYTES}"
            )


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _settings(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every plain value with the setting that it belongs to."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _settings(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _settings(inner, key)
    elif not isinstance(value, bool):
        yield key, value
