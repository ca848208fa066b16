"""The tools say of models and data what a run says of them, all at once."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import to_toml
from tests.tiny import make_hf_folder
from tests.tiny_run import make_run
from tools import convert_checkpoint, plan_run

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
NORM = "model.norm.weight"


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """Return a configuration without a mistake, written to run.toml beside its files."""
    config = make_run(tmp_path)
    (tmp_path / "run.toml").write_text(to_toml(config))
    return config


def planned(folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[int, Any]:
    """Return the exit status of a plan, and what it is about as JSON."""
    file = folder / "plan.json"
    monkeypatch.chdir(folder)
    arguments = ["run.toml", "--gpus", "1", "--gpu-type", "h100", "--json", str(file), *flags]
    monkeypatch.setattr(sys, "argv", ["plan_run", *arguments])
    status = plan_run.main()
    return status, json.loads(file.read_text())


def test_a_plan_counts_the_rows_that_a_run_would_use(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"content": "face west", "teacher_response": x} for x in ("a", "b", "", "c") * 5]
    Path(run.data.path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, found = planned(tmp_path, monkeypatch)
    assert status == 0
    stage = found["plans"][0]["stages"][0]
    per_step = run.warmup.prompts_per_step
    assert stage["epoch_seconds"] == pytest.approx(15 / per_step * stage["step_seconds"])
    assert not Path(run.checkpoint.save).exists()


def test_a_plan_lists_all_that_a_run_would_refuse(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = Path(run.student.path)
    (folder / "generation_config.json").write_text(POINTER)
    (folder / "chat_template.jinja").unlink()
    status, _ = planned(tmp_path, monkeypatch)
    refused = [line for line in capsys.readouterr().err.splitlines() if "would refuse" in line]
    assert status == 2
    assert len(refused) == 2
    assert "git-lfs pointer" in refused[0] and "has no chat template" in refused[1]


def test_a_plan_names_the_row_that_cannot_be_read(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with Path(run.data.path).open("a") as file:
        file.write('{"content": 5, "teacher_response": "a"}\n')
    status, _ = planned(tmp_path, monkeypatch)
    assert status == 2
    assert f"would refuse this: {run.data.path}: 1 row cannot be read" in capsys.readouterr().err
    status, _ = planned(tmp_path, monkeypatch, "--num-prompts", "20")
    assert status == 0  # who says how many there are does not have them read


def test_a_plan_needs_no_more_of_a_model_than_its_config(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in Path(run.student.path).iterdir():
        if file.name != "config.json":
            file.unlink()
    assert planned(tmp_path, monkeypatch)[0] == 0


def test_the_converter_warns_of_a_tokenizer_that_a_run_would_refuse(
    run: RunConfig, tmp_path: Path, capsys: Any
) -> None:
    """Weights are converted without it."""
    source, between = run.student.path, str(tmp_path / "megatron")
    make_hf_folder(source, vocab_size=383)
    back = ["--from-megatron", between, "--to-hf", str(tmp_path / "back")]
    for command in (["--from-hf", source, "--to-megatron", between], back):
        assert convert_checkpoint.main(command) == 0
        said = capsys.readouterr().err
        assert "warning: a run would refuse --" in said
        assert "has ids up to 383" in said and "only 383 rows" in said
    (Path(source) / "tokenizer.json").write_text(POINTER)
    assert convert_checkpoint.main(back) == 2
    assert "holds a git-lfs pointer" in capsys.readouterr().err


def test_verifying_names_weights_that_are_not_finite(
    run: RunConfig, tmp_path: Path, capsys: Any
) -> None:
    file = Path(run.student.path) / "model.safetensors"
    tensors = load_file(file)
    tensors[NORM][3:5] = torch.tensor([float("nan"), float("inf")])
    save_file(tensors, file, metadata={"format": "pt"})
    command = ["--from-hf", run.student.path, "--to-megatron", str(tmp_path / "megatron")]
    assert convert_checkpoint.main([*command, "--verify"]) == 1
    said = f"1 tensors hold values that are not finite: {NORM}; of {NORM} it is 2, in "
    assert said in capsys.readouterr().out
