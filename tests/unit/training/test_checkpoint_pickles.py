"""Code that somebody planted in a checkpoint does not run, in whatever file of it."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_gad.training.checkpoint import Residents, load_model, save_checkpoint
from megatron_gad.training.checkpoint_files import iteration_folder
from megatron_gad.training.checkpoint_pickles import check_pickles
from megatron_gad.training.checkpoint_shapes import checkpoint_tensors
from megatron_gad.training.parallel import Parallel
from tests.tiny_training import make_student

Plant = Callable[[Path, bytes], None]


class Command:
    """Unpickles by making a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.fixture
def saved(place: Parallel, qwen2: Path, tmp_path: Path) -> Path:
    """The student's folder in a checkpoint."""
    residents = Residents({"student": make_student(qwen2, place)})
    save_checkpoint(tmp_path, 1, residents, {}, place, keep_last=0)
    return iteration_folder(tmp_path, 1) / "student"


def plant_in_metadata(folder: Path, code: bytes) -> None:
    """Run it before the honest pickle, and drop its result."""
    file = folder / ".metadata"
    file.write_bytes(code.removesuffix(b".") + b"0" + file.read_bytes()[2:])


def plant_in_common(folder: Path, code: bytes) -> None:
    (folder / "common.pt").write_bytes(code)


def plant_in_an_object(folder: Path, code: bytes) -> None:
    """Put it behind the tensors, and let an object that is no tensor point to it."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    index, place = next(
        (index, place)
        for index, place in metadata.storage_data.items()
        if "_extra_state/shard_0_" in index.fqn
    )
    file = folder / place.relative_path
    place.offset, place.length = file.stat().st_size, len(code)
    metadata.storage_data[index] = place
    file.write_bytes(file.read_bytes() + code)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def in_torch_file(command: Command) -> bytes:
    out = io.BytesIO()
    torch.save({"content": command}, out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("plant", "form", "file"),
    [
        (plant_in_metadata, pickle.dumps, r"student/\.metadata"),
        (plant_in_common, in_torch_file, r"student/common\.pt"),
        (plant_in_an_object, in_torch_file, r"student/__0_\d\.distcp"),
    ],
)
def test_code_in_a_checkpoint_is_refused_with_its_file(
    place: Parallel,
    qwen2: Path,
    saved: Path,
    tmp_path: Path,
    plant: Plant,
    form: Callable[[Command], bytes],
    file: str,
) -> None:
    flag = tmp_path / "flag"
    plant(saved, form(Command(str(flag))))
    for read in (
        check_pickles,
        checkpoint_tensors,
        lambda folder: load_model(folder, make_student(qwen2, place)),
    ):
        with pytest.raises(ValueError, match=rf"{file} .*go back to another checkpoint"):
            read(saved)
    assert not flag.exists()


def test_an_honest_checkpoint_passes(place: Parallel, qwen2: Path, saved: Path) -> None:
    check_pickles(saved)
    load_model(saved, make_student(qwen2, place))


@pytest.mark.parametrize("name", [".metadata", "common.pt"])
@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_cut_file_is_named(saved: Path, name: str, size: int) -> None:
    file = saved / name
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"{name} .*damaged"):
        check_pickles(saved)


def test_a_missing_file_is_named(saved: Path) -> None:
    (saved / ".metadata").unlink()
    with pytest.raises(ValueError, match=r"\.metadata cannot be read"):
        check_pickles(saved)


def test_a_file_outside_the_folder_is_not_opened(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    next(iter(metadata.storage_data.values())).relative_path = "../../secret"
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=r"names '\.\./\.\./secret', which is outside"):
        check_pickles(saved)
