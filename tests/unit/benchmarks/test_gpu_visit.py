"""The script of a visit to a GPU machine: every part is tried, and how each ended is written."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu_visit.sh"


def visit(out: Path, python: str, *options: str) -> tuple[int, list[str], str]:
    """Run it with another program in place of Python; returns status, lines and errors."""
    command = [str(SCRIPT), "--out", str(out), *options]
    done = subprocess.run(
        command, env=os.environ | {"PYTHON": python}, capture_output=True, text=True, check=False
    )
    lines = out / "lines.txt"
    return done.returncode, lines.read_text().splitlines() if lines.exists() else [], done.stderr


@pytest.mark.parametrize(
    ("python", "status", "word"), [("true", 0, "well"), ("false", 1, "FAILED")]
)
def test_a_part_that_fails_keeps_no_other_from_its_turn(
    tmp_path: Path, python: str, status: int, word: str
) -> None:
    found, lines, _ = visit(tmp_path, python, "--device", "cpu", "--smollm2", str(tmp_path))
    assert found == status
    for part in ("versions", "tests", "tiny", "speeds"):
        assert any(line.startswith(f"== {part}: {word}") for line in lines), (part, lines)
    assert any(line.startswith("== smollm2: left out") for line in lines)


def test_transformer_engine_is_built_last_and_then_tested(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "transformer_engine_torch-2.11.0.tar.gz").touch()
    status, lines, _ = visit(tmp_path / "out", "true", "--device", "cpu", "--wheels", str(wheels))
    assert status == 0
    ends = [line.split(":")[0].removeprefix("== ") for line in lines if ": well" in line]
    assert ends[0] == "wheels"
    assert ends[-3:] == ["te_build", "te_tests", "all"]


@pytest.mark.parametrize("options", [("--card", "h100"), ("--device", "tpu")])
def test_what_it_does_not_know_is_refused(tmp_path: Path, options: tuple[str, str]) -> None:
    status, lines, errors = visit(tmp_path, "true", *options)
    assert (status, lines) == (2, [])
    assert "gpu_visit" in errors and "use" in errors
