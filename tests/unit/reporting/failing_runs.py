"""What runs that are made to fail have in common, and how a rule has to tell of itself."""

import html
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_gad.__main__ import main
from tests.ranks import statuses_of_ranks

Played = tuple[int | None, list[dict[str, Any]], str]
SMALL = {
    "--adversarial.prompts-per-step": ["1"],
    "--adversarial.group-size": ["2"],
    "--adversarial.extra-discriminator-steps": ["0"],
}
NORTH, SOUTH = "facing north.", "facing south."


def run_command(words: list[str]) -> int:
    """Run the command in this process."""
    sys.argv = ["megatron_gad", *words]
    return main()


def game(assets: Path, save: Path, steps: int, *flags: str) -> Played:
    """Play the game from a student with random weights; return status, metrics and log."""
    words = [] if flags[0].endswith(".toml") else ["examples/tiny/run.toml"]
    words += [*flags, "--no-tensorboard", "--adversarial.steps", str(steps), "--save", str(save)]
    words += ["--student.path", str(assets / "student")]
    defaults = {"--stages": ["adversarial"], "--data.path": [str(assets / "train.jsonl")]}
    defaults |= {"--data.eval-path": [str(assets / "eval.jsonl")], **SMALL}
    words += [x for name, values in defaults.items() if name not in flags for x in (name, *values)]
    log = save.with_suffix(".log")
    (status,) = statuses_of_ranks(run_command, 1, words, log=log, timeout_s=600)
    lines = (save / "metrics.jsonl").read_text().splitlines()
    return status, [json.loads(line) for line in lines], log.read_text()


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write a file of JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def short_teacher(assets: Path, folder: Path) -> Path:
    """Write rows whose teacher says two words: whoever says more is found out by his length."""
    rows = read_rows(assets / "train.jsonl")
    return write_rows(folder / "short.jsonl", [{**row, "teacher_response": NORTH} for row in rows])


def rewarded_length(folder: Path, factor: float) -> str:
    """Write the tiny configuration with the response's length for its only reward."""
    reward = 'function = "tests.unit.engines.rewards.given:lengths"'
    file = folder / "rewarded.toml"
    file.write_text(
        f"{Path('examples/tiny/run.toml').read_text()}\n"
        f'[[rewards]]\nname = "length"\n{reward}\narguments = {{ factor = {factor} }}\n'
        '[[rewards]]\nname = "discriminator"\nweight = 0.0\n'
    )
    return str(file)


def assert_told(save: Path, log: str, rule: str, remedy: str, action: str = "") -> None:
    """Say that a rule told of itself in the log and on the page: evidence, remedy, what it did.

    action: as it is told; "" for a rule that only warns.
    """
    lines = [line for line in log.splitlines() if "health: " in line and f"({rule}): " in line]
    assert lines, f"{rule} is silent:\n{log}"
    value = re.findall(rf"\({rule}\): (.*?); healthy is ", lines[0])[0]
    assert remedy in lines[0]
    told = f"Therefore {action} (health)."
    assert lines[0].endswith(told) if action else "Therefore" not in lines[0]
    page = (save / "report.html").read_text()
    (episode, *_) = re.findall(
        rf'<div class="finding act">\s*<span class="muted">(?:(?!<div class="finding).)*'
        rf'<span class="muted">{rule}</span>.*?healthy:',
        page,
        re.DOTALL,
    )
    shown = html.unescape(episode)
    assert remedy in shown
    assert f"<b>{value}</b>" in shown
    assert (told if action else "A warning.") in shown
