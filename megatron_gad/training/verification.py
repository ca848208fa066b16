"""Does a Megatron model compute what transformers computes from a Hugging Face folder?"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.output import ModelName
from megatron_gad.models.families import load_hf_config
from megatron_gad.training.conversion import build_chunks
from megatron_gad.training.parallel import Parallel

LOADED: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
NUM_ROWS, NUM_TOKENS = 2, 32
# Of the largest output. Rounding alone stays far below; a wrong weight is at the order of 1.
TOLERANCE = 1e-4


@torch.no_grad()
def relative_difference(
    chunks: list[torch.nn.Module],
    hf_folder: Path,
    model: ModelName,
    layout: ParallelConfig,
    place: Parallel,
) -> float:
    """Compare logits, or a discriminator's scores, on random tokens. All ranks call it.

    Both sides compute in float32, whatever the weights are stored in: in bfloat16, the rounding of
    thirty layers is as large as a small fault.

    Args:
        chunks: this rank's modules, as ``build_chunks`` made them.
        hf_folder: the model that transformers loads, on the writing rank's CPU.
        model: whether the outputs are logits or scores.
        layout: the layout of the ranks, with which the modules were built.
        place: this rank's.

    Returns:
        The largest difference over the largest output, the same on all ranks.
    """
    generator = torch.Generator().manual_seed(0)
    vocab_size: Any = chunks[0].real_vocab_size
    tokens = torch.randint(vocab_size, (NUM_ROWS, NUM_TOKENS), generator=generator)
    ours = _outputs(_in_float32(chunks, hf_folder, model, layout, place), tokens, place)
    result = 0.0
    if place.is_writer:
        theirs = _outputs_of_transformers(hf_folder, model, tokens)
        ours = ours if model == "discriminator" else ours[..., :vocab_size]
        result = float((ours - theirs).abs().max() / theirs.abs().max())
    return place.from_first_rank(result)


def _in_float32(
    chunks: list[torch.nn.Module],
    hf_folder: Path,
    model: ModelName,
    layout: ParallelConfig,
    place: Parallel,
) -> list[torch.nn.Module]:
    """Return the modules if they are float32, else copies that are."""
    if next(chunks[0].parameters()).dtype == torch.float32:
        return chunks
    wide = build_chunks(load_hf_config(hf_folder), model, layout, torch.float32, place)
    for chunk, copy in zip(chunks, wide, strict=True):
        for ours, theirs in zip(chunk.parameters(), copy.parameters(), strict=True):
            theirs.copy_(ours)
    return wide


def _outputs(chunks: list[torch.nn.Module], tokens: Tensor, place: Parallel) -> Tensor:
    """Return the model's whole output on the CPU: [B, T, V + padding] logits or [B, T] scores."""

    def step(batches: Iterator[Tensor], chunk: torch.nn.Module) -> tuple[Tensor, Callable]:
        batch = next(batches).to(place.device)
        positions = torch.arange(NUM_TOKENS, device=place.device).expand_as(batch)

        def keep(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return output.new_zeros(()), torch.ones((), dtype=torch.int), output.clone()

        return chunk(batch, positions, None), keep

    kept = get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter([tokens]),
        model=chunks,
        num_microbatches=1,
        seq_length=NUM_TOKENS,
        micro_batch_size=NUM_ROWS,
        forward_only=True,
    )
    return place.from_last_stage(_all_columns(kept[0]).cpu() if place.is_last_stage else None)


def _all_columns(output: Tensor) -> Tensor:
    """Put the logits of all tensor-parallel ranks together; scores every rank has whole."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    if output.dim() == 2 or size == 1:
        return output
    parts = [torch.empty_like(output) for _ in range(size)]
    group = parallel_state.get_tensor_model_parallel_group()
    torch.distributed.all_gather(parts, output.contiguous(), group=group)
    return torch.cat(parts, dim=-1)


def _outputs_of_transformers(hf_folder: Path, model: ModelName, tokens: Tensor) -> Tensor:
    """Return [B, T, V] logits or [B, T] scores, float32."""
    if model == "student":
        return AutoModelForCausalLM.from_pretrained(hf_folder, **LOADED)(tokens).logits
    scorer = AutoModelForSequenceClassification.from_pretrained(hf_folder, **LOADED)
    # Its own forward scores one token of a row only.
    return scorer.score(scorer.base_model(tokens)[0]).squeeze(-1)
