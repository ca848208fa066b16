"""Hugging Face tensors into this rank's Megatron parameters and back, one tensor at a time."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.nn.functional import pad
from transformers import PretrainedConfig

from megatron_gad.models.hf_folder import read_tensors
from megatron_gad.models.layers import current_device
from megatron_gad.models.scorer import ScorerModel
from megatron_gad.models.slots import Slot, slots_of, unwrapped
from megatron_gad.models.tensor_names import LM_HEAD, SCORE_HEAD, layer_names


def load_hf_weights(
    chunks: list[torch.nn.Module],
    hf_config: PretrainedConfig,
    source: str | Path | Iterable[tuple[str, Tensor]],
) -> None:
    """Fill every parameter of this rank, and the vocabulary's padding rows with zeros.

    A scorer takes no notice of an output layer, and keeps its head where the source has none
    ("score.weight"). Values are converted to the parameters' dtype.

    Args:
        chunks: from build_language_model or build_scorer, bare or wrapped.
        hf_config: the shape they were built from.
        source: a Hugging Face folder with safetensors, or the whole model as (name, tensor).

    Raises:
        ValueError: names missing tensors, unknown tensors, or one of another shape.
    """
    slots_by_name: dict[str, list[Slot]] = defaultdict(list)
    for slot in slots_of(chunks, hf_config):
        slots_by_name[slot.name].append(slot)
    if isinstance(source, str | Path):
        source = read_tensors(Path(source), wanted=slots_by_name.keys())
    missing = slots_by_name.keys() - {SCORE_HEAD}
    known = {*layer_names(hf_config), LM_HEAD, SCORE_HEAD}
    for name, tensor in source:
        if name not in known:
            raise ValueError(
                f"the source has a tensor {name!r}, of shape {list(tensor.shape)}, that a "
                f"{hf_config.model_type!r} model has not; is its config.json the right one?"
            )
        for slot in slots_by_name.get(name, ()):
            _fill(slot, tensor)
        missing = missing - {name}
    if missing:
        raise ValueError(
            f"the source lacks {len(missing)} tensors of the {hf_config.model_type!r} model: "
            f"{', '.join(sorted(missing)[:8])}; is it complete, and its config.json the right one?"
        )


def export_hf_weights(
    chunks: list[torch.nn.Module], hf_config: PretrainedConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the model, whole, under its Hugging Face name.

    Collective: all ranks that share the model iterate together and receive the same sequence, in
    the order of the layers; with expert parallelism that includes the data parallel ranks which
    share the experts. One tensor at a time is whole. A tied output layer is left out, as
    transformers does; a scorer ends with "score.weight". The tensors are copies on this rank's
    device.

    Args:
        chunks: from build_language_model or build_scorer, bare or wrapped.
        hf_config: the shape they were built from.
    """
    names = layer_names(hf_config)
    if isinstance(unwrapped(chunks[0]), ScorerModel):
        names.append(SCORE_HEAD)
    elif not hf_config.tie_word_embeddings:
        names.append(LM_HEAD)
    slots = {slot.name: slot for slot in slots_of(chunks, hf_config)}
    places = _places(slots)
    for name in names:
        tensor = _whole(slots.get(name), places[name])
        yield name, tensor[: places[name].num_rows]


@dataclass(frozen=True)
class Place:
    """What a rank has to know to receive a tensor; stage: the pipeline rank that has it."""

    stage: int
    part_shape: tuple[int, ...]
    cut_axis: int | None
    num_rows: int | None
    expert_rank: int | None
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of all tensor parallel ranks' parts together."""
        shape = list(self.part_shape)
        if self.cut_axis is not None:
            shape[self.cut_axis] *= _tensor_group(self.expert_rank).size()
        return tuple(shape)


def _places(slots: dict[str, Slot]) -> dict[str, Place]:
    """Tell every rank which tensors the others have; where two stages have one, the first counts.

    Experts that only other expert parallel ranks have are among them.
    """
    stage = parallel_state.get_pipeline_model_parallel_rank()
    places = {
        name: Place(
            stage,
            slot.part_shape,
            slot.cut_axis,
            slot.num_rows,
            slot.expert_rank,
            slot.part.dtype,
        )
        for name, slot in slots.items()
    }
    places = _merged(places, parallel_state.get_pipeline_model_parallel_group())
    return _merged(places, parallel_state.get_expert_model_parallel_group())


def _merged(mine: dict[str, Place], group: Any) -> dict[str, Place]:
    """Put what the ranks of a group know together; the first one counts."""
    if group.size() == 1:
        return mine
    known: list[dict[str, Place]] = [{}] * group.size()
    torch.distributed.all_gather_object(known, mine, group=group)
    return {name: place for places in reversed(known) for name, place in places.items()}


def _whole(slot: Slot | None, place: Place) -> Tensor:
    """Return a copy of the tensor with the parts of all tensor parallel ranks.

    A rank's pipeline and tensor parallel ranks have the same experts, so that an expert is first
    put together where it lives and then sent to the other expert parallel ranks.
    """
    experts: Any = parallel_state.get_expert_model_parallel_group()
    if place.expert_rank in (None, experts.rank()):
        tensor = _gather(_broadcast_part(slot, place), place)
    else:
        tensor = torch.empty(place.shape, dtype=place.dtype, device=current_device())
    if place.expert_rank is not None and experts.size() > 1:
        torch.distributed.broadcast(tensor, group=experts, group_src=place.expert_rank)
    return tensor


def _broadcast_part(slot: Slot | None, place: Place) -> Tensor:
    """Return a copy of the tensor's part with this rank's tensor parallel rank, from its stage."""
    if place.stage == parallel_state.get_pipeline_model_parallel_rank():
        assert slot is not None, f"{place} is not on this stage"
        part = slot.part.reshape(place.part_shape).clone()
    else:
        part = torch.empty(place.part_shape, dtype=place.dtype, device=current_device())
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        group: Any = parallel_state.get_pipeline_model_parallel_group()
        torch.distributed.broadcast(part, group=group, group_src=place.stage)
    return part


def _gather(part: Tensor, place: Place) -> Tensor:
    """Put the parts of all tensor parallel ranks together."""
    group = _tensor_group(place.expert_rank)
    if place.cut_axis is None or group.size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(group.size())]
    torch.distributed.all_gather(parts, part, group=group)
    return torch.cat(parts, dim=place.cut_axis)


def _tensor_group(expert_rank: int | None) -> Any:
    """Return the ranks that a tensor is cut over: those of an expert where it is an expert's."""
    if expert_rank is None:
        return parallel_state.get_tensor_model_parallel_group()
    return parallel_state.get_expert_tensor_parallel_group()


def _fill(slot: Slot, tensor: Tensor) -> None:
    """Copy this rank's part of a whole tensor into its place.

    Raises:
        ValueError: the tensor has another shape than the model.
    """
    group = _tensor_group(slot.expert_rank)
    expected = list(slot.part_shape)
    if slot.cut_axis is not None:
        expected[slot.cut_axis] *= group.size()
    if slot.num_rows is not None:
        expected[0] = slot.num_rows
    if list(tensor.shape) != expected:
        raise ValueError(
            f"{slot.name} has shape {list(tensor.shape)} where the model's config.json means "
            f"{expected}; the weights belong to another config.json"
        )
    if slot.cut_axis is not None:
        length = slot.part_shape[slot.cut_axis]
        start = length * group.rank()
        start, stop = (min(end, tensor.shape[slot.cut_axis]) for end in (start, start + length))
        tensor = tensor.narrow(slot.cut_axis, start, stop - start)
    if slot.num_rows is not None:
        tensor = pad(tensor, (0, 0, 0, slot.part_shape[0] - tensor.shape[0]))
    slot.part.copy_(tensor.reshape(slot.part.shape))
