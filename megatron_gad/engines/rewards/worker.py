"""The process that computes one reward: ``python -m megatron_gad.engines.rewards.worker``.

It reads one line of JSON at a time from standard input, and answers with one on what was standard
output; what the function prints goes to standard error. It ends when its input does.
"""

import importlib
import json
import math
import os
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

# A server is asked this many times, with these pauses between.
PAUSES_S = (0.5, 2.0)
Rows = Sequence[Mapping[str, Any]]
Values = list[float | None]


def main() -> None:
    """Load the function that the first line names, then answer every further line."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(said: Mapping[str, Any]) -> None:
        answers.write(json.dumps(said) + "\n")
        answers.flush()

    asked = json.loads(sys.stdin.readline())
    try:
        function = load(asked["function"], asked["arguments"], asked["timeout_s"])
    except Exception:  # noqa: BLE001 - whatever a user's module raises is told
        answer({"error": traceback.format_exc()})
        return
    answer({"error": ""})
    for line in sys.stdin:
        values, errors = evaluate(function, json.loads(line))
        answer({"values": values, "errors": errors})


def load(name: str, arguments: Mapping[str, Any], timeout_s: float) -> Callable[[Rows], Any]:
    """Return the function of a name "module:function", or one that asks the server of a URL."""
    if name.startswith(("http://", "https://")):
        return partial(ask, name, arguments, timeout_s)
    sys.path.insert(0, "")
    module, _, attribute = name.partition(":")
    return partial(getattr(importlib.import_module(module), attribute), **arguments)


def ask(url: str, arguments: Mapping[str, Any], timeout_s: float, rows: Rows) -> Any:
    """Post {"rows": [...], "arguments": {...}} to a server, which answers {"rewards": [...]}."""
    body = json.dumps({"rows": rows, "arguments": arguments}).encode()
    for pause in (*PAUSES_S, None):
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                return json.load(reply)["rewards"]
        except OSError as error:
            if pause is None:
                raise
            sys.stderr.write(f"{url}: {error}; asked again in {pause} s\n")
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def evaluate(function: Callable[[Rows], Any], rows: Rows) -> tuple[Values, list[str]]:
    """Return a number for each row, None where there is none, and what went wrong there, or "".

    If the function fails for all rows together, each is tried alone.
    """
    try:
        return _checked(function(rows), len(rows))
    except Exception:  # noqa: BLE001 - a user's function
        if len(rows) == 1:
            return [None], [traceback.format_exc()]
    alone = [evaluate(function, [row]) for row in rows]
    return [values[0] for values, _ in alone], [errors[0] for _, errors in alone]


def _checked(values: Any, count: int) -> tuple[Values, list[str]]:
    found = list(values)
    if len(found) != count:
        raise ValueError(f"returned {len(found)} numbers for {count} rows")
    errors = ["" if _is_number(value) else f"returned {value!r}, no number" for value in found]
    return [None if error else float(v) for v, error in zip(found, errors, strict=True)], errors


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


if __name__ == "__main__":
    main()
