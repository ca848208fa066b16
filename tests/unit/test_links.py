"""Links in a run directory: no temporary file is written through one, and folders are."""

import os
import stat
from pathlib import Path

import pytest

from megatron_gad.checks.sections import check_exports
from megatron_gad.config.output import CheckpointConfig
from megatron_gad.files import replace_text
from megatron_gad.models.families import load_hf_config
from megatron_gad.models.hf_folder import read_tensors, save_hf_folder
from tests.tiny import make_hf_folder


def test_a_temporary_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim, file = tmp_path / "victim", tmp_path / "run" / "config.toml"
    victim.write_text("mine")
    file.parent.mkdir()
    (file.parent / "config.toml.draft").symlink_to(victim)
    replace_text(file, "the run's")
    assert (file.read_text(), victim.read_text()) == ("the run's", "mine")
    assert not file.is_symlink()
    assert [each.name for each in file.parent.iterdir()] == ["config.toml"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_hf_folder(tmp_path / "model")
    return tmp_path / "model"


def _export(model: Path, out: Path) -> None:
    config = load_hf_config(model)
    names = set(dict(read_tensors(model, ())))
    save_hf_folder(read_tensors(model, names), config, model, out)


def test_a_model_is_exported_to_where_a_link_leads(model: Path, tmp_path: Path) -> None:
    elsewhere, run = tmp_path / "big_disk" / "student", tmp_path / "run"
    run.mkdir()
    (run / "student_hf").symlink_to(elsewhere)
    for _ in range(2):  # there is nothing yet; then a model is replaced
        _export(model, run / "student_hf")
        assert (run / "student_hf").readlink() == elsewhere
        assert (elsewhere / "model.safetensors").is_file()
        assert [each.name for each in elsewhere.parent.iterdir()] == ["student"]


def test_the_draft_of_an_export_is_not_written_through_a_link(model: Path, tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.mkdir()
    run.mkdir()
    (run / "student_hf.draft").symlink_to(victim)
    _export(model, run / "student_hf")
    assert list(victim.iterdir()) == []
    assert [each.name for each in run.iterdir()] == ["student_hf"]


def test_exported_weights_are_as_readable_as_other_files(model: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        _export(model, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o640}, modes


def test_an_export_that_would_fail_after_all_training_is_refused_before(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = CheckpointConfig(save=str(run), export_stages=True)
    folder = run / "student_hf_seqkd"
    assert list(check_exports(config, ("seqkd",))) == []
    folder.symlink_to(folder)
    (circle,) = check_exports(config, ("seqkd",))
    folder.unlink()
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    (other,) = check_exports(config, ("seqkd",))
    assert f"{folder}, to which the run exports, is a file or a link in a circle" in circle
    assert "move it away, or leave 'student' out of checkpoint.export" in circle
    assert "holds files and no config.json" in other
