"""Reading the tensors of a Hugging Face model folder, and writing a whole folder."""

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from megatron_gad.files import delete_tree, draft_of
from megatron_gad.manifest import look_at, names_in, write_manifest
from megatron_gad.models.families import family_of
from megatron_gad.models.hf_headers import INDEX, WEIGHTS, weight_files
from megatron_gad.models.tensor_names import DERIVED, SCORE_HEAD

SHARD_BYTES = 4 * 1000**3
SUFFIX = ".safetensors"
GENERATION = "generation_config.json"
# The files copied beside the weights; whatever else a folder holds stays behind.
COPIED = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    GENERATION,
)


def read_tensors(folder: Path, wanted: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a folder's safetensors files, one at a time, on the CPU.

    Args:
        folder: holds model.safetensors, or an index and the files it names.
        wanted: the names whose values are read; the others come without values, on the meta device.

    Raises:
        ValueError: the folder holds no safetensors.
    """
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a handle, not a dict
                if name in wanted:
                    yield name, tensors.get_tensor(name)
                elif not name.endswith(DERIVED):
                    stored = tensors.get_slice(name)
                    yield (
                        name,
                        torch.empty(stored.get_shape(), dtype=stored[:0].dtype, device="meta"),
                    )


def save_hf_folder(
    named_tensors: Iterable[tuple[str, Tensor]],
    hf_config: PretrainedConfig,
    tokenizer_folder: str | Path,
    out_folder: str | Path,
    stop_ids: Sequence[int] = (),
) -> None:
    """Write a model as a folder that transformers and inference engines load.

    A model that has "score.weight" is written as a sequence classifier with one label. An existing
    out_folder is replaced; until everything is written it stays as it was. One rank calls this; the
    others of the model only iterate over export_hf_weights.

    Args:
        named_tensors: the whole model, from export_hf_weights.
        hf_config: its configuration, from load_hf_config.
        tokenizer_folder: whose tokenizer and generation_config.json are copied.
        out_folder: the folder to write.
        stop_ids: the tokens that the model was taught to end with, for generation_config.json; none
            given: that file stays as it is.

    Raises:
        ValueError: out_folder holds something else than a model.
    """
    # Where a link leads to, which may be another disk: the link stays.
    out_folder = Path(out_folder).resolve()
    if out_folder.exists() and any(out_folder.iterdir()):
        _check_is_model(out_folder)
    beside = draft_of(out_folder)
    if os.path.lexists(beside):
        delete_tree(beside)
    beside.mkdir(parents=True)
    dtype_by_name = _save_shards(named_tensors, beside)
    config = _config_json(hf_config, dtype_by_name)
    (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for pattern in COPIED:
        for file in Path(tokenizer_folder).glob(pattern):
            copy = beside / file.relative_to(tokenizer_folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
    if stop_ids:
        _write_stop_ids(beside / GENERATION, stop_ids)
    # Of the weights alone: the texts beside them may be edited.
    weights = [name for name in names_in(beside) if name == INDEX or name.endswith(SUFFIX)]
    write_manifest(beside, look_at(beside, weights))
    shutil.rmtree(out_folder, ignore_errors=True)
    beside.rename(out_folder)


def _check_is_model(folder: Path) -> None:
    """Raise ValueError where a folder would be replaced that no model was ever written to."""
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{folder} exists and holds no config.json, so it is no model to be replaced; "
            "name a new folder, or empty this one"
        )


def _save_shards(
    named_tensors: Iterable[tuple[str, Tensor]], folder: Path
) -> dict[str, torch.dtype]:
    """Write files of at most SHARD_BYTES and their index; returns the dtype of every tensor."""
    dtype_by_name: dict[str, torch.dtype] = {}
    shard_by_name: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    shards: list[Path] = []
    num_bytes = total_bytes = 0

    def close_shard() -> None:
        shards.append(folder / f"shard-{len(shards)}")
        save_with_usual_mode(shard, shards[-1])
        shard.clear()

    for name, tensor in named_tensors:
        if shard and num_bytes + tensor.nbytes > SHARD_BYTES:
            close_shard()
            num_bytes = 0
        shard[name] = tensor.detach().to("cpu").contiguous()
        shard_by_name[name], dtype_by_name[name] = len(shards), tensor.dtype
        num_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    close_shard()
    if len(shards) == 1:
        shards[0].rename(folder / WEIGHTS)
        return dtype_by_name
    names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    for path, name in zip(shards, names, strict=True):
        path.rename(folder / name)
    weight_map = {name: names[shard_index] for name, shard_index in shard_by_name.items()}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return dtype_by_name


def save_with_usual_mode(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a safetensors file that others may read as the umask says; save_file lets nobody."""
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(mode)


def _write_stop_ids(file: Path, stop_ids: Sequence[int]) -> None:
    """Let a generation_config.json name the tokens that end a response; other keys stay."""
    config: dict[str, Any] = {}
    if file.exists():
        config = json.loads(file.read_text(encoding="utf-8"))
    config["eos_token_id"] = stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config_json(
    hf_config: PretrainedConfig, dtype_by_name: dict[str, torch.dtype]
) -> dict[str, Any]:
    """Make the config.json of the written model from the one it came from.

    The original file, not what this version of transformers would write: inference engines with an
    older one do not know the newer keys, and would take their own defaults, silently.
    """
    source = Path(hf_config.name_or_path or "") / "config.json"
    if hf_config.name_or_path and source.exists():
        config = json.loads(source.read_text(encoding="utf-8"))
    else:
        config = json.loads(hf_config.to_json_string(use_diff=False))
    dtype = str(next(iter(dtype_by_name.values()))).removeprefix("torch.")
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    prefix = family_of(hf_config).class_prefix
    config["architectures"] = [f"{prefix}ForCausalLM"]
    if SCORE_HEAD in dtype_by_name:
        config["architectures"] = [f"{prefix}ForSequenceClassification"]
        config |= {"id2label": {"0": "SCORE"}, "label2id": {"SCORE": 0}}
    return config
