"""What a checkpoint holds as pickles may name data, and nothing that can be executed.

torch reads ``.metadata`` and the objects beside the tensors with an unrestricted unpickler, which
runs what a file tells it to. Both are read here first, by unpicklers that know a closed set of
classes.
"""

import io
import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

METADATA, COMMON = ".metadata", "common.pt"
# All that torch.distributed.checkpoint puts into .metadata.
MODULES = {
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex"),
        *("StorageMeta", "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.planner": {
        *("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"),
    },
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
}


class _DataUnpickler(pickle.Unpickler):
    """Knows the classes of a checkpoint's metadata, and torch's types of numbers."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if global_name in MODULES.get(module_name, ()):
            return super().find_class(module_name, global_name)
        if module_name == "torch":
            found = getattr(torch, global_name, None)
            if global_name == "Size" or isinstance(found, torch.dtype):
                return found
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def check_pickles(folder: Path) -> None:
    """Read what one model's folder of a checkpoint holds as pickles, without executing any of it.

    Raises:
        ValueError: a file is damaged, or holds something other than data; names it.
    """
    metadata = _read_metadata(folder / METADATA)
    objects = {
        key
        for key, stored in metadata.state_dict_metadata.items()
        if isinstance(stored, BytesStorageMetadata)
    }
    for index, place in metadata.storage_data.items():
        name = str(place.relative_path)
        if PurePath(name).name != name:
            raise ValueError(f"{folder / METADATA} names {name!r}, which is outside its folder")
        if index.fqn in objects:
            _check_data(folder / name, place.offset, place.length)
    _check_data(folder / COMMON)


def _read_metadata(file: Path) -> Metadata:
    try:
        metadata = _DataUnpickler(io.BytesIO(file.read_bytes())).load()
        if isinstance(metadata, Metadata) and isinstance(metadata.storage_data, dict):
            return metadata
        reason = f"it holds a {type(metadata).__name__}"
    # A damaged pickle can fail in any of these ways.
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError) as error:
        reason = str(error)
    except (AttributeError, IndexError, MemoryError, OverflowError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ValueError(
        f"{file} cannot be read as the list of a checkpoint's tensors ({reason}): it is damaged, "
        "or was made to run code; go back to another checkpoint"
    )


def _check_data(file: Path, offset: int = 0, length: int = -1) -> None:
    """Read one pickle of a file as torch reads data."""
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            torch.load(io.BytesIO(opened.read(length)), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{file} holds something other than data ({first}): it is damaged, or was made to run "
            "code; go back to another checkpoint"
        ) from error
