"""How a rank ends whose error the other ranks may not have."""

import subprocess
import sys

import pytest

from megatron_gad.__main__ import _tell
from megatron_gad.errors import RunStoppedError

LEAVES = """
import atexit, contextlib, os
from megatron_gad.train import leave

atexit.register(print, "what the interpreter does at its end, as taking groups apart")
with contextlib.ExitStack() as parts:
    parts.callback(print, "the report is written")
    parts.callback({engine})
    leave(3, parts)
print("here it goes on")
"""


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("print, 'the engine is stopped'", "the engine is stopped\nthe report is written\n"),
        ("os.close, -1", "the report is written\n"),  # an error
    ],
)
def test_a_rank_that_leaves_ends_its_parts_and_nothing_else(engine: str, said: str) -> None:
    command = [sys.executable, "-c", LEAVES.format(engine=engine)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (3, said), ended.stderr


def test_what_is_told_of_an_error_depends_on_whose_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _tell(0, ValueError("data.path is empty\n  give a file")) == 2
    assert capsys.readouterr().err == "megatron_gad: data.path is empty\n  give a file\n"
    assert _tell(3, ValueError("data.path is empty\n  give a file")) == 2
    assert capsys.readouterr().err == "megatron_gad: rank 3: data.path is empty\n"
    assert _tell(3, RunStoppedError("the weights are lost")) == 3
    assert capsys.readouterr().err == "megatron_gad: rank 3: the weights are lost\n"
    assert _tell(3, OSError("no space left")) == 1
    assert capsys.readouterr().err.endswith("OSError: no space left\n")
    assert _tell(3, KeyboardInterrupt()) == 130
