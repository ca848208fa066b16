"""What no setting may be is refused before anything looks at it."""

import sys
from pathlib import Path

import pytest

from megatron_gad.__main__ import main
from megatron_gad.checks.limits import LARGEST, PATHS
from tests.tiny_run import make_run


def refusal(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> str:
    """Return what the command says of a good configuration with other keys in its file."""
    config = make_run(folder)
    file = folder / "run.toml"
    file.write_text(text)
    # A flag would override the file's path.
    paths = {"--student.path": config.student.path, "--data.path": config.data.path}
    flags = [word for pair in paths.items() for word in pair if "\npath = " not in text]
    monkeypatch.setattr(sys, "argv", ["megatron_gad", str(file), *flags, "--dry-run"])
    assert main() == 2
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("path", ["a" * 5000, "a/" * 2500, "a" * 256], ids=["name", "path", "256"])
def test_a_path_that_no_file_system_takes_is_refused(
    key: str,
    path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    table, _, name = key.partition(".")
    said = refusal(tmp_path, f"[{table}]\n{name} = '{path}'", monkeypatch, capfd)
    assert f"{key} = 'a" in said
    assert "a file system takes 4095 bytes, with names of up to 255" in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"[optimizer]\nlr_warmup_steps = 1{'0' * 400}",
            "optimizer.lr_warmup_steps is a number",
        ),
        (f"[seqkd]\nbatch_size = {LARGEST + 1}", f"give one up to {LARGEST}"),
        (
            f"[sglang.server_args]\nx = [1{'0' * 30}]",
            "sglang.server_args.x is a number of 100 bits",
        ),
        ("[student]\nlr = nan", "student.lr = nan is not allowed; give a finite number"),
        ("[student]\nlr = inf", "student.lr = inf is not allowed; give a finite number"),
        ("[data]\nsystem_prompt = 'a\\u0000'".replace("'", '"'), "holds a character that no file"),
        (
            "[rollout]\nengine = 'sglang'\n[sglang]\ntensor_parallel_size = 0",
            "sglang.tensor_parallel_size = 0 is not allowed; give a value above 0",
        ),
    ],
)
def test_a_value_that_nothing_can_be_is_refused(
    text: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert expected in refusal(tmp_path, text, monkeypatch, capfd)


def test_a_step_of_more_prompts_than_the_data_has_is_refused_by_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "[data]\nmax_prompt_tokens = 64\nmax_response_tokens = 24\n"
    text += "[adversarial]\nprompts_per_step = 1000000"
    said = refusal(tmp_path, text, monkeypatch, capfd)
    assert "adversarial.prompts_per_step = 1000000" in said
