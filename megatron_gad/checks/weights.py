"""Rules for the weights of a model folder, against its config.json; reads headers only."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PretrainedConfig

from megatron_gad.checks.found import ModelFolder
from megatron_gad.models.hf_headers import StoredTensor, shown
from megatron_gad.models.tensor_names import (
    DERIVED,
    EMBEDDING,
    LM_HEAD,
    SCORE_HEAD,
    Shape,
    body_shapes,
    head_shapes,
)

FLOATS = ("F64", "F32", "F16", "BF16")
HALF = "F16"
COMPARED_ROWS = 64  # of an output layer and the embedding that it ought to be


def check_weights(folder: ModelFolder, is_scorer: bool = False) -> Iterator[str]:
    """Yield what is wrong with the weights of a folder that was read.

    Args:
        folder: with what its headers say.
        is_scorer: it is the discriminator's own, which needs no output layer.
    """
    if folder.weights is None:
        return
    for problem in folder.weights.problems:
        yield f"{folder.named} {problem}"
    tensors = {k: v for k, v in folder.weights.tensors.items() if not k.endswith(DERIVED)}
    quantised = [name for name, tensor in tensors.items() if tensor.dtype not in FLOATS]
    if quantised:
        yield (
            f"{folder.named}: {quantised[0]} in {tensors[quantised[0]].file} is of type "
            f"{tensors[quantised[0]].dtype}, {len(quantised)} tensors are not "
            f"{', '.join(FLOATS)}; quantised weights cannot be trained: use the model's bfloat16 "
            "release, or dequantise it"
        )
    if folder.shape is None or folder.weights.problems or quantised:
        return  # names and shapes would only repeat it
    yield from _name_problems(folder, folder.shape, tensors, is_scorer)
    yield from _shape_problems(folder, folder.shape, tensors)
    if not is_scorer and folder.shape.tie_word_embeddings and LM_HEAD in tensors:
        yield from _tie_problems(folder, tensors)


def _name_problems(
    folder: ModelFolder,
    shape: PretrainedConfig,
    tensors: Mapping[str, StoredTensor],
    is_scorer: bool,
) -> Iterator[str]:
    """Yield which tensors the model lacks, and which it has not."""
    needed = body_shapes(shape)
    known = needed.keys() | {LM_HEAD, SCORE_HEAD}
    missing = [name for name in needed if name not in tensors]
    if not (is_scorer or shape.tie_word_embeddings or LM_HEAD in tensors):
        missing.append(LM_HEAD)
    if missing:
        yield (
            f"{folder.named} lacks {len(missing)} tensors of the {shape.model_type!r} model: "
            f"{shown(missing)}{_likely_reason(tensors, missing)}"
        )
    extra = [name for name in tensors if name not in known]
    if extra and len(missing) < len(needed):
        yield (
            f"{folder.named} has {len(extra)} tensors that a {shape.model_type!r} model with its "
            f"config.json has not: {shown(extra)} (the first in {tensors[extra[0]].file}); is "
            "config.json the right one?"
        )


def _likely_reason(tensors: Mapping[str, StoredTensor], missing: list[str]) -> str:
    """Return what to do about missing tensors, from what is there."""
    if missing == [LM_HEAD]:
        return (
            "; save the language model, not its body alone (AutoModelForCausalLM), or set "
            "tie_word_embeddings = true in config.json if the output layer is the embedding"
        )
    if any(".lora_" in name for name in tensors):
        return (
            "; it holds LoRA matrices: merge them into the base model (merge_and_unload() of peft)"
        )
    if EMBEDDING.removeprefix("model.") in tensors:
        return (
            "; the names lack 'model.', as a body without its head is saved: save the model with "
            "AutoModelForCausalLM"
        )
    wrapped = next((name for name in tensors if name.endswith(f".{EMBEDDING}")), "")
    if wrapped:
        return (
            f"; the names begin with {wrapped.removesuffix(EMBEDDING)!r}, as a model is saved "
            "inside of another: save the model itself with save_pretrained()"
        )
    return "; is the folder complete, and its config.json the right one?"


def _shape_problems(
    folder: ModelFolder, shape: PretrainedConfig, tensors: Mapping[str, StoredTensor]
) -> Iterator[str]:
    """Yield the first tensor of another shape than config.json means, and how many there are."""
    expected: dict[str, Shape] = body_shapes(shape) | head_shapes(shape)
    wrong = [
        name for name, size in expected.items() if name in tensors and tensors[name].shape != size
    ]
    if wrong:
        first = tensors[wrong[0]]
        count = "" if len(wrong) == 1 else f"; {len(wrong)} tensors are of another shape"
        yield (
            f"{folder.named}: {wrong[0]} has shape {list(first.shape)} where the model's "
            f"config.json means {list(expected[wrong[0]])} (in {first.file}){count}; weights and "
            "config.json belong to different models"
        )


def _tie_problems(folder: ModelFolder, tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    """Yield a message if rows of the output layer differ from those of the embedding."""
    head, embedding = tensors[LM_HEAD], tensors.get(EMBEDDING)
    if embedding is None or head.shape != embedding.shape:
        return  # said already
    path = Path(folder.path)
    rows = [_some_rows(path / t.file, n) for n, t in ((LM_HEAD, head), (EMBEDDING, embedding))]
    if not torch.equal(rows[0].float(), rows[1].float()):
        yield (
            f"{folder.named}: tie_word_embeddings = true in config.json, but {LM_HEAD} in "
            f"{head.file} is not {EMBEDDING}; set tie_word_embeddings = false in config.json to "
            "train that output layer, or save the model again without it"
        )


def describe_types(folder: ModelFolder) -> str:
    """Return the types of a folder's tensors as safetensors spells them: "BF16", "BF16, F32"."""
    return ", ".join(kind for kind, _ in _types_of(folder).most_common())


def type_warnings(folder: ModelFolder, is_bf16: bool) -> Iterator[str]:
    """Yield what a folder's types may have lost of its weights.

    is_bf16: the run reads them as bfloat16, else as float32.
    """
    types = _types_of(folder)
    if types[HALF]:
        read_as = "bfloat16, with fewer digits" if is_bf16 else "float32"
        yield (
            f"{folder.named}: {types[HALF]} of {types.total()} tensors are float16, and are read "
            f"as {read_as}. Of a model that was trained in bfloat16, float16 has lost what is "
            "above 65,504, which is infinite there, and what is below 6e-8, which is 0: take its "
            "bfloat16 release if there is one; --dry-run --check-weights finds what is infinite"
        )


def _types_of(folder: ModelFolder) -> Counter[str]:
    tensors = {} if folder.weights is None else folder.weights.tensors
    return Counter(tensor.dtype for name, tensor in tensors.items() if not name.endswith(DERIVED))


def value_problems(folder: ModelFolder) -> Iterator[str]:
    """Yield which tensors hold values that are not finite; reads all of a folder's weights."""
    if folder.weights is None or folder.weights.problems:
        return  # said already
    bad: dict[str, int] = {}
    for file in sorted({tensor.file for tensor in folder.weights.tensors.values()}):
        with safe_open(Path(folder.path) / file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a handle, not a dict
                value = tensors.get_tensor(name)
                if value.is_floating_point() and not (finite := torch.isfinite(value)).all():
                    bad[name] = int((~finite).sum())
    if bad:
        first, count = next(iter(bad.items()))
        yield (
            f"{folder.named}: {len(bad)} tensors hold values that are not finite: "
            f"{shown([*bad])}; of {first} it is {count:,}, in "
            f"{folder.weights.tensors[first].file}: download the folder again, or go back to an "
            "earlier checkpoint of the model"
        )


def _some_rows(file: Path, name: str) -> torch.Tensor:
    """Return evenly spaced rows of a matrix, [up to COMPARED_ROWS, columns]."""
    with safe_open(file, framework="pt") as tensors:
        stored = tensors.get_slice(name)
        count = stored.get_shape()[0]
        step = max(1, count // COMPARED_ROWS)
        return torch.cat([stored[row : row + 1] for row in range(0, count, step)])
