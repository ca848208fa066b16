"""Runs a language model and a scorer at every layout; started by test_models.py on four ranks.

``main`` takes the folder with the Hugging Face folders and inputs.pt, into which the results go.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state as mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.utils import get_model_config
from torch import Tensor
from torch.distributed import all_gather, all_reduce

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models.attention import context_parallel_positions
from megatron_gad.models.build import build_language_model, build_scorer
from megatron_gad.models.families import load_hf_config
from megatron_gad.models.hf_weights import export_hf_weights, load_hf_weights
from tests.distributed.layouts import ALL_LAYOUTS, EVERYWHERE, HEAD_STD, RECOMPUTED, SEED
from tests.distributed.workers import drop_groups, save


def initialize(layout: ParallelConfig) -> None:
    """Make the process groups of a layout; the ranks left over are data parallel copies."""
    drop_groups()
    mpu.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline_model_parallel_size,
        context_parallel_size=layout.context_parallel_size,
        expert_model_parallel_size=layout.expert_model_parallel_size,
        expert_tensor_parallel_size=layout.expert_tensor_parallel_size,
    )
    model_parallel_cuda_manual_seed(SEED)


def forward_step(
    microbatches: Any, model: torch.nn.Module, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]]:
    """Give the schedule one microbatch: (tokens [B, T], weights of the loss [B, T, ...])."""
    tokens, weights = (own_positions(tensor) for tensor in next(microbatches))

    def loss_func(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        kept = {"output": output.detach().clone()}
        return loss(output, weights), torch.tensor(1, dtype=torch.int), kept

    return model(tokens, torch.zeros_like(tokens), None), loss_func


def own_positions(tensor: Tensor) -> Tensor:
    """Take this context parallel rank's positions of the second axis."""
    size = mpu.get_context_parallel_world_size()
    positions = context_parallel_positions(tensor.shape[1] // size, size)
    return tensor[:, positions[mpu.get_context_parallel_rank()]]


def language_loss(logits: Tensor, weights: Tensor) -> Tensor:
    """A linear function of the real logits, of which this rank has some columns."""
    start = mpu.get_tensor_model_parallel_rank() * logits.shape[-1]
    return (logits * own_columns(weights, start, logits.shape[-1])).sum()


def own_columns(weights: Tensor, start: int, length: int) -> Tensor:
    """Cut columns out of the weights, with zeros where there are none any more."""
    columns = weights[..., start : start + length]
    return torch.nn.functional.pad(columns, (0, length - columns.shape[-1]))


def scorer_loss(scores: Tensor, weights: Tensor) -> Tensor:
    """A linear function of the scores; they are the same on every tensor parallel rank."""
    return (scores * weights).sum()


def run(
    chunks: list[torch.nn.Module],
    microbatches: list[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """Run forward and backward over the microbatches; returns the last stage's outputs."""
    iterators = [iter(microbatches) for _ in chunks]
    kept = get_forward_backward_func()(
        forward_step_func=partial(forward_step, loss=loss),
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(microbatches),
        seq_length=microbatches[0][0].shape[1],
        micro_batch_size=microbatches[0][0].shape[0],
        forward_only=False,
    )
    return [entry["output"] for entry in kept]


def sum_gradients(chunks: list[torch.nn.Module]) -> None:
    """Sum the gradients that a rank has a part of only, as Megatron does at the end of a step."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            assert parameter.grad is not None, name
            if not getattr(parameter, "allreduce", True):
                # The data parallel ranks hold the same rows here, and sent them all to the experts.
                all_reduce(parameter.grad, group=mpu.get_expert_data_parallel_group())
                parameter.grad /= mpu.get_data_parallel_world_size()
                continue
            is_split = getattr(parameter, "sequence_parallel", False)
            if is_split or "q_layernorm" in name or "k_layernorm" in name:
                all_reduce(parameter.grad, group=mpu.get_tensor_model_parallel_group())
            all_reduce(parameter.grad, group=mpu.get_context_parallel_group())
    ends = {0, mpu.get_pipeline_model_parallel_world_size() - 1}
    tied = [chunk for chunk in chunks if chunk.share_embeddings_and_output_weights]
    if tied and mpu.get_pipeline_model_parallel_rank() in ends and len(ends) == 2:
        end: Any = tied[0] if mpu.is_pipeline_first_stage() else tied[-1]
        weight = end.shared_embedding_or_output_weight()
        all_reduce(weight.grad, group=mpu.get_embedding_group())


def whole_output(output: Tensor, is_vocabulary: bool) -> Tensor:
    """Put the columns of all tensor and the positions of all context parallel ranks together."""
    if is_vocabulary:
        columns = [
            torch.empty_like(output) for _ in range(mpu.get_tensor_model_parallel_world_size())
        ]
        all_gather(columns, output, group=mpu.get_tensor_model_parallel_group())
        output = torch.cat(columns, dim=-1)
    size = mpu.get_context_parallel_world_size()
    pieces = [torch.empty_like(output) for _ in range(size)]
    all_gather(pieces, output.contiguous(), group=mpu.get_context_parallel_group())
    order = context_parallel_positions(output.shape[1], size).flatten().argsort()
    return torch.cat(pieces, dim=1)[:, order]


def run_case(folder: Path, case: str, layout: str, inputs: dict[str, Tensor]) -> None:
    """Load, run and export one model at one layout; writes CASE-LAYOUT.*.pt."""
    ranks = ALL_LAYOUTS[layout]
    compute = ComputeConfig(recompute_granularity="full" if layout in RECOMPUTED else None)
    is_scorer = case.startswith("scorer")
    hf_folder = folder / case.removeprefix("scorer-")
    hf_config = load_hf_config(hf_folder)
    if is_scorer:
        chunks = build_scorer(hf_config, ranks, compute, head_std=HEAD_STD, seed=SEED)
    else:
        chunks = build_language_model(hf_config, ranks, compute)
    load_hf_weights(chunks, hf_config, hf_folder)
    exported = dict(export_hf_weights(chunks, hf_config))
    weights = inputs["score_weights" if is_scorer else "logit_weights"]
    microbatches = list(zip(inputs["tokens"].split(2), weights.split(2), strict=True))
    loss = scorer_loss if is_scorer else language_loss
    get_model_config(chunks[0]).finalize_model_grads_func = None
    outputs = run(chunks, microbatches, loss)
    if outputs:
        output = torch.cat([whole_output(one, is_vocabulary=not is_scorer) for one in outputs])
        if mpu.get_data_parallel_rank(with_context_parallel=True) == 0:
            path = folder / f"{case}-{layout}.output.pt"
            torch.save(output, path.with_suffix(f".{torch.distributed.get_rank()}"))
            path.with_suffix(f".{torch.distributed.get_rank()}").rename(path)
    sum_gradients(chunks)
    for chunk in chunks:
        for parameter in chunk.parameters():
            assert parameter.grad is not None
            parameter.data.copy_(parameter.grad)
    gradients = dict(export_hf_weights(chunks, hf_config))
    save(folder / f"{case}-{layout}.weights.pt", (exported, gradients))


def main(folder: Path) -> None:
    """Run all cases at all layouts."""
    torch.distributed.init_process_group("gloo")
    inputs = torch.load(folder / "inputs.pt")
    for layout, ranks in ALL_LAYOUTS.items():
        initialize(ranks)
        for case in (case for case, where in EVERYWHERE if where == layout):
            run_case(folder, case, layout, inputs)
            torch.distributed.barrier()
    torch.distributed.destroy_process_group()
