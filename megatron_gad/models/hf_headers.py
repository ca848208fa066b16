"""What a Hugging Face folder's safetensors files hold, read from their headers alone."""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# How a file begins that stands for a large one, in a folder cloned without git-lfs.
POINTER = b"version https://git-lfs"
POINTER_BYTES = 1024  # pointers are smaller
# An absurd header length means that the file is no safetensors; the format itself allows no more.
MOST_HEADER_BYTES = 100_000_000
METADATA = "__metadata__"
SHOWN = 4


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file. dtype: as the format spells it, such as "BF16"."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a folder by name, and what is wrong with its files.

    problems: each with a remedy, as what is said of the folder: "lacks ...", "holds ...".
    """

    tensors: Mapping[str, StoredTensor]
    problems: tuple[str, ...]


def is_pointer(file: Path) -> bool:
    """Whether a file is a git-lfs pointer in place of what it stands for."""
    if file.stat().st_size >= POINTER_BYTES:
        return False
    return file.read_bytes().startswith(POINTER)


def pointer_problem(file: Path) -> str:
    """Say, of its folder, what to do about a git-lfs pointer."""
    return (
        f"holds a git-lfs pointer of {file.stat().st_size} bytes in place of {file.name}; run "
        "git lfs pull there, or download the folder with hf download"
    )


def read_headers(folder: Path) -> StoredWeights:
    """Read the headers of a folder's safetensors files; no tensor's values are read.

    The files are those that the index names, or model.safetensors.
    """
    tensors: dict[str, StoredTensor] = {}
    problems: list[str] = []
    try:
        index = _read_index(folder)
    except ValueError as error:
        return StoredWeights({}, (str(error),))
    for file in _files_of(folder, index):
        try:
            tensors |= _read_header(file)
        except ValueError as error:
            problems.append(str(error))
    if index is not None and not problems:
        problems += _index_problems(index, tensors)
    return StoredWeights(tensors, tuple(problems))


def weight_files(folder: Path) -> list[Path]:
    """List a folder's safetensors files: those that the index names, or model.safetensors.

    Raises:
        ValueError: there is neither, or the index cannot be used.
    """
    try:
        return _files_of(folder, _read_index(folder))
    except ValueError as error:
        raise ValueError(f"{folder} {error}") from error


def _files_of(folder: Path, index: dict[str, str] | None) -> list[Path]:
    if index is None:
        return [folder / WEIGHTS]
    return sorted({folder / name for name in index.values()})


def _read_index(folder: Path) -> dict[str, str] | None:
    """Return tensor -> file name of the index; None if the weights are one file.

    Raises:
        ValueError: there is neither, the index is broken, or it leaves model.safetensors out.
    """
    file = folder / INDEX
    if not file.exists():
        if (folder / WEIGHTS).exists():
            return None
        raise ValueError(_no_weights(folder))
    if is_pointer(file):
        raise ValueError(pointer_problem(file))
    try:
        index: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        names = {*index.values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"holds a broken {INDEX} ({error!r}); download it again") from error
    if WEIGHTS not in names and (folder / WEIGHTS).exists():
        raise ValueError(
            f"holds {WEIGHTS} and an {INDEX} that names other files, so it is not clear which are "
            "the model's; remove what is out of date"
        )
    return index


def _no_weights(folder: Path) -> str:
    """Say what a folder holds in place of safetensors, and what to do."""
    if (folder / "adapter_config.json").exists():
        return (
            "holds a LoRA adapter (adapter_config.json) without its base model; merge the two "
            "(PeftModel.from_pretrained(...).merge_and_unload()) and name the folder that "
            "save_pretrained() of the merged model writes"
        )
    others = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if others:
        return (
            f"holds {others[0].name} and no *.safetensors; convert it with "
            f"AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained('NEW_FOLDER') and "
            "copy the tokenizer's files"
        )
    shards = sorted(folder.glob("*.safetensors"))
    if shards:
        return (
            f"holds {shards[0].name} but neither {WEIGHTS} nor {INDEX}; download what is missing, "
            "or save the model with save_pretrained() of transformers"
        )
    return f"holds no *.safetensors; write {WEIGHTS} there with save_pretrained() of transformers"


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors that a file's header lists.

    Raises:
        ValueError: the file is missing, no safetensors, or has another size than its header says.
    """
    if not file.exists():
        raise ValueError(f"lacks {file.name}, which {INDEX} names; download it")
    if is_pointer(file):
        raise ValueError(pointer_problem(file))
    size = file.stat().st_size
    held = f"holds {file.name} of {size:,} bytes"
    again = "download it again, or save the model again with save_pretrained() of transformers"
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8).ljust(8, b"\xff"))
        if length > MOST_HEADER_BYTES:
            raise ValueError(f"{held} that is no safetensors file; {again}")
        text = opened.read(length)
    if len(text) < length:
        raise ValueError(f"{held} that ends inside its header; {again}")
    try:
        header: dict[str, Any] = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != METADATA}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        tensors = {
            name: StoredTensor(file.name, entry["dtype"], tuple(entry["shape"]))
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{held} without a header of safetensors ({error!r}); {again}") from error
    if size != 8 + length + end:
        raise ValueError(f"{held}, and its header speaks of {8 + length + end:,}; {again}")
    return tensors


def _index_problems(index: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    """Yield which tensors are not in the file that the index names."""
    lost = [
        name for name, file in index.items() if name not in tensors or tensors[name].file != file
    ]
    if lost:
        yield (
            f"holds an {INDEX} with {len(lost)} tensors that are not in the files it names: "
            f"{shown(lost)}; they belong to different models: download the folder again"
        )


def shown(names: list[str]) -> str:
    """Return the first few names, and how many follow."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
