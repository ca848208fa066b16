"""Hugging Face folders to Megatron checkpoints and back, in whatever layout the ranks have.

A converted checkpoint holds weights only: ``<folder>/iter_0000000/<model>``, and in
``<folder>/config.toml`` the Hugging Face folder it came from. Checkpoints of a run have the same
shape, with optimizer states and the state of the run beside the weights, which are not read here.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import tomli
import tomli_w
import torch
from megatron.core import dist_checkpointing
from transformers import PretrainedConfig

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.output import ModelName
from megatron_gad.data.chat import ChatCodec
from megatron_gad.files import draft_of
from megatron_gad.models.build import build_language_model, build_scorer
from megatron_gad.models.families import load_hf_config, mixture_of
from megatron_gad.models.hf_folder import read_tensors, save_hf_folder
from megatron_gad.models.hf_weights import export_hf_weights, load_hf_weights
from megatron_gad.models.hub import find_model
from megatron_gad.models.tensor_names import SCORE_HEAD
from megatron_gad.training.checkpoint import (
    read_sharded,
    sharded_weights,
    take_weights,
)
from megatron_gad.training.checkpoint_digests import (
    changed_since,
    check_model_folder,
    write_digests,
)
from megatron_gad.training.checkpoint_files import (
    LATEST,
    iteration_folder,
    latest_iteration,
)
from megatron_gad.training.checkpoint_shapes import check_tensors, checkpoint_tensors
from megatron_gad.training.parallel import Parallel

CONFIG = "config.toml"
# Only between types that both formats hold are the values bit for bit the same.
DTYPES = (torch.float32, torch.bfloat16)

Chunks = list[torch.nn.Module]


def hf_to_megatron(
    hf_folder: Path, out: Path, model: ModelName, layout: ParallelConfig, place: Parallel
) -> tuple[Path, Chunks]:
    """Write a Hugging Face folder's weights as a Megatron checkpoint. All ranks call it.

    Args:
        hf_folder: config.json and safetensors, all of one dtype, float32 or bfloat16.
        out: the folder to write into; it may hold the other model already.
        model: a discriminator needs "score.weight", as transformers' sequence classifiers have.
        layout: of the ranks.
        place: from ``parallel.initialize``.

    Returns:
        The folder of the model in the checkpoint, and the modules it was saved from.

    Raises:
        ValueError: config.json, weights and layout do not fit each other, or ``out`` is taken.
    """
    hf_config = load_hf_config(hf_folder)
    target = _free_target(out, model)
    check_model_folder("--from-hf", str(hf_folder), place)
    dtype = _hf_dtype(hf_folder, model)
    chunks = build_chunks(hf_config, model, layout, dtype, place)
    load_hf_weights(chunks, hf_config, hf_folder)
    draft = draft_of(target)
    if place.is_writer:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    place.barrier()
    dist_checkpointing.save(sharded_weights(chunks), str(draft))
    write_digests(draft, place)
    if place.is_writer:
        draft.rename(target)
        _note_source(out, model, hf_folder)
    place.barrier()
    return target, chunks


def megatron_to_hf(
    checkpoint: Path,
    hf_source: Path,
    out: Path,
    model: ModelName,
    layout: ParallelConfig,
    place: Parallel,
) -> Chunks:
    """Write a checkpoint's weights as a Hugging Face folder. All ranks call it.

    Args:
        checkpoint: an iteration's folder; the layout it was saved with does not matter.
        hf_source: whose config.json, tokenizer and generation_config.json are taken.
        out: the folder to write; must not exist.
        model: which of the checkpoint's models.
        layout: of the ranks, as suits their number and memory.
        place: from ``parallel.initialize``.

    Returns:
        The modules that the weights went through.

    Raises:
        ValueError: the checkpoint is none, lacks the model, or does not fit the config.json.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; remove it or name another folder")
    folder = _model_folder(checkpoint, model)
    _check_digests(checkpoint, folder, place)
    stored = checkpoint_tensors(folder)
    hf_config = load_hf_config(hf_source)
    dtype = stored["decoder.final_layernorm.weight"].dtype
    chunks = build_chunks(hf_config, model, layout, dtype, place)
    check_tensors(folder, stored, sharded_weights(chunks), hf_config, place)
    load_weights(folder, chunks)
    weights = export_hf_weights(chunks, hf_config)
    if place.is_writer:
        save_hf_folder(weights, hf_config, hf_source, out, _stop_ids(hf_source))
    else:
        for _ in weights:
            pass
    place.barrier()
    return chunks


def build_chunks(
    hf_config: PretrainedConfig,
    model: ModelName,
    layout: ParallelConfig,
    dtype: torch.dtype,
    place: Parallel,
) -> Chunks:
    """Build this rank's modules of a model; the weights are undefined until loaded.

    Raises:
        ValueError: the shape cannot be laid out like that.
    """
    build: Callable[[PretrainedConfig, ParallelConfig, ComputeConfig], Chunks]
    build = build_language_model if model == "student" else build_scorer
    is_mixture = mixture_of(hf_config) is not None
    if layout.expert_model_parallel_size > 1 and not is_mixture:
        raise ValueError(
            f"expert_model_parallel_size = {layout.expert_model_parallel_size}, but a "
            f"{hf_config.model_type!r} model has no experts to share out; leave it out"
        )
    # Experts need it under tensor parallelism; the weights are the same.
    is_sharded = is_mixture and layout.tensor_model_parallel_size > 1
    layout = replace(layout, sequence_parallel=is_sharded)
    compute = ComputeConfig(bf16=dtype == torch.bfloat16)
    return [chunk.to(place.device) for chunk in build(hf_config, layout, compute)]


def load_weights(folder: Path, chunks: Chunks) -> None:
    """Read a model's weights, saved in whatever layout, into this rank's modules."""
    take_weights(chunks, read_sharded(sharded_weights(chunks), folder))


def find_checkpoint(folder: Path) -> Path:
    """Return the iteration folder that a folder is, or has as its newest or only one.

    Raises:
        ValueError: there is none, or several and none is marked as the newest.
    """
    if folder.name.startswith("iter_"):
        return folder
    iteration = latest_iteration(folder)
    if iteration is not None:
        return iteration_folder(folder, iteration)
    found = sorted(
        path for path in folder.glob("iter_*") if path.name.removeprefix("iter_").isdigit()
    )
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"{folder} has {len(found)} iter_* folders and no {LATEST}; "
        "name a run directory, or one of its iter_* folders"
    )


def find_hf_source(checkpoint: Path, model: ModelName) -> Path:
    """Return the Hugging Face folder that a checkpoint's run was started from.

    Raises:
        ValueError: config.toml beside the checkpoint does not tell, or the folder is gone.
    """
    file = checkpoint.parent / CONFIG
    remedy = "name the folder with --hf-config"
    if not file.exists():
        raise ValueError(f"{file} does not exist, so the model's shape is unknown; {remedy}")
    tables = tomli.loads(file.read_text(encoding="utf-8"))
    paths = {name: table["path"] for name, table in tables.items() if name in get_args(ModelName)}
    # A discriminator without a path of its own was made from the student.
    path = paths.get(model) or paths.get("student")
    if not path:
        raise ValueError(f"{file} has no {model}.path; {remedy}")
    path = find_model(f"{model}.path", path, may_fetch=True)
    if not (Path(path) / "config.json").exists():
        raise ValueError(
            f"{model}.path = {path!r} of {file} holds no config.json; it is relative to where "
            f"the run was started: run this there, or {remedy}"
        )
    return Path(path)


def _free_target(out: Path, model: ModelName) -> Path:
    """Return where a converted model goes.

    Raises:
        ValueError: something is there.
    """
    if (out / LATEST).exists():
        raise ValueError(f"{out} is the directory of a run; name another folder to convert into")
    target = iteration_folder(out, 0) / model
    if target.exists():
        raise ValueError(f"{target} exists already; remove it or name another folder")
    return target


def _hf_dtype(hf_folder: Path, model: ModelName) -> torch.dtype:
    """Return the one dtype of a folder's weights; a discriminator's head is float32 anyway.

    Raises:
        ValueError: there are several or another, or the head of a discriminator is missing.
    """
    dtypes = {name: tensor.dtype for name, tensor in read_tensors(hf_folder, wanted=())}
    body = {name: dtype for name, dtype in dtypes.items() if name != SCORE_HEAD}
    found = set(body.values())
    if len(found) != 1 or not found <= set(DTYPES):
        examples = {str(dtype): name for name, dtype in body.items()}
        listed = ", ".join(f"{dtype} (as in {name})" for dtype, name in examples.items())
        raise ValueError(
            f"the weights in {hf_folder} are {listed}; only all float32 or all bfloat16 can be "
            "converted without a change: save the model in one of them with transformers"
        )
    if model == "discriminator" and SCORE_HEAD not in dtypes:
        raise ValueError(
            f"{hf_folder} has no {SCORE_HEAD}, so it is no discriminator; convert it with "
            "--model student: a run makes its own head for a discriminator.path without one"
        )
    return found.pop()


def _stop_ids(hf_source: Path) -> tuple[int, ...]:
    """Return the tokens that a run from this folder teaches its student to end with."""
    try:
        return ChatCodec.from_folder(hf_source, 1, 1).stop_ids
    except ValueError:  # without a tokenizer and its template no run has begun there
        return ()


def _check_digests(checkpoint: Path, folder: Path, place: Parallel) -> None:
    """Raise ValueError if a checkpoint of a run, or a converted model, is not what was written."""
    for each in (checkpoint, folder):
        changed = changed_since(each, place)
        if changed:
            raise ValueError(f"{each} {changed}; copy it again, or name another checkpoint")


def _model_folder(checkpoint: Path, model: ModelName) -> Path:
    """Return the folder of one model of a checkpoint.

    Raises:
        ValueError: there is none; names the models that are there.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint} is not a folder; name a run directory or an iter_* folder")
    folders = sorted(path for path in checkpoint.iterdir() if (path / "metadata.json").exists())
    for folder in folders:
        if folder.name == model:
            return folder
    there = ", ".join(folder.name for folder in folders) or "no model"
    raise ValueError(f"{checkpoint} holds {there}, not {model!r}; choose --model or another folder")


def _note_source(out: Path, model: ModelName, hf_folder: Path) -> None:
    """Write down which Hugging Face folder a model came from, where ``find_hf_source`` looks."""
    file = out / CONFIG
    tables = tomli.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    tables[model] = {"path": str(hf_folder.resolve())}
    file.write_text(tomli_w.dumps(tables), encoding="utf-8")
