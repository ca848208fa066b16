"""Digests of a folder's files: what changed is named, and nothing else."""

import json
from pathlib import Path

import pytest
import xxhash

from megatron_gad.manifest import (
    BLOCK_BYTES,
    MANIFEST,
    Written,
    changed_files,
    look_at,
    loss_of,
    names_in,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of less than a block, of more than two, and of nothing."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "small").write_bytes(b"small")
    (tmp_path / "inner" / "large").write_bytes(bytes(range(256)) * (BLOCK_BYTES // 100))
    (tmp_path / "empty").write_bytes(b"")
    write_manifest(tmp_path, look_at(tmp_path, names_in(tmp_path)))
    return tmp_path


def test_the_digest_is_that_of_the_whole_file(folder: Path) -> None:
    for name, (size, digest) in read_manifest(folder).items():
        content = (folder / name).read_bytes()
        assert (size, digest) == (len(content), xxhash.xxh3_128_hexdigest(content))


def test_one_bit_anywhere_is_noticed_and_its_file_is_named(folder: Path) -> None:
    written = read_manifest(folder)
    assert sorted(written) == ["empty", "inner/large", "small"]
    assert changed_files(folder, written, written) == []
    file = folder / "inner" / "large"
    whole = file.read_bytes()
    for place in (0, BLOCK_BYTES, len(whole) - 1):
        broken = bytearray(whole)
        broken[place] ^= 1
        file.write_bytes(broken)
        assert changed_files(folder, written, written) == ["inner/large"]
        assert loss_of(folder, written) == ""


def test_a_file_that_is_gone_or_shorter_is_noticed_without_reading(folder: Path) -> None:
    written = read_manifest(folder)
    (folder / "small").write_bytes(b"smal")
    assert loss_of(folder, written) == "holds small with 4 of its 5 bytes"
    (folder / "small").unlink()
    assert loss_of(folder, written) == "lacks small"
    assert changed_files(folder, written, ["small"]) == ["small"]


def test_a_list_of_sizes_alone_is_still_read(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"small": 5}))
    written = read_manifest(folder)
    assert written == {"small": Written(5, "")}
    assert changed_files(folder, written, written) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"small": {"bytes": 5}}', '{"small": "five"}'])
def test_a_damaged_manifest_is_damage(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=rf"^holds {MANIFEST} that cannot be read"):
        read_manifest(folder)
