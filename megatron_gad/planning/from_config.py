"""What a configuration asks of the planner: the layout, and the work of a step of each stage."""

from dataclasses import replace
from pathlib import Path

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.data import DataConfig
from megatron_gad.config.layout import HOST_GPUS, ParallelConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.config.stage_section import StageWork
from megatron_gad.data.dataset import HUB
from megatron_gad.data.forms import wanted_columns
from megatron_gad.data.rows import read_file_rows
from megatron_gad.engines.sglang.launch import count_servers
from megatron_gad.models.layout_rules import data_parallel_size, ranks_beside_the_first
from megatron_gad.planning.devices import Assumptions, Device
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.memory import precision_of
from megatron_gad.planning.request import Request
from megatron_gad.planning.shapes import ModelShape
from megatron_gad.planning.work import Lengths
from megatron_gad.training.settings import TrainerSettings


def plan_request(
    config: RunConfig,
    shapes: tuple[ModelShape, ModelShape],
    device: Device,
    num_gpus: int,
    lengths: Lengths,
    assume: Assumptions,
) -> Request:
    """Return what there is to plan about a configuration.

    shapes: of student and discriminator.
    """
    compute = config.compute
    student, discriminator = shapes
    works = stage_works(config)
    return Request(
        student=student,
        discriminator=discriminator,
        device=device,
        num_gpus=num_gpus,
        stages=works,
        lengths=lengths,
        precision=precision_of(compute.bf16, compute.fp8_format is not None),
        is_fp8=compute.fp8_format is not None,
        micro_batch_size=compute.micro_batch_size,
        max_tokens_per_microbatch=compute.max_tokens_per_microbatch,
        split_groups=config.discriminator.split_groups,
        joins_attention=compute.transformer_impl == "local" and compute.pack_sequences is not False,
        shares_prompts=TrainerSettings(ParallelConfig(), compute, config.seed).shares_prompts,
        logprob_chunk_size=compute.logprob_chunk_size,
        assume=assume,
    )


def stage_works(config: RunConfig) -> tuple[StageWork, ...]:
    """Return a typical step of each stage of a run, in their order."""
    split_groups = config.discriminator.split_groups
    return tuple(section.work(config.gad, split_groups) for section in config.stage_sections)


def configured_layout(config: RunConfig, num_gpus: int, has_experts: bool) -> Layout:
    """Return the layout that a configuration has on this many GPUs.

    With the discriminator's, and the copies of the engine: one on the first rank of each copy of
    the model, the servers that it starts, or those at URLs.

    has_experts: whether the discriminator's model has experts.
    """
    student, sglang = config.parallel, config.sglang
    own = config.discriminator_layout(has_experts)
    layout = _layout(student, config.compute, num_gpus)
    if config.rollout.engine == "embedded":
        layout = replace(layout, engines=layout.data)
    if config.rollout.engine == "sglang":
        num_own_gpus = ranks_beside_the_first(student, num_gpus, HOST_GPUS)
        started = count_servers(sglang, num_own_gpus) * layout.data
        engines = len(sglang.urls) or started
        layout = replace(layout, engine_tensor=sglang.tensor_parallel_size, engines=engines)
    if own == student:
        return layout
    return replace(layout, discriminator=_layout(own, config.compute, num_gpus))


def _layout(parallel: ParallelConfig, compute: ComputeConfig, num_gpus: int) -> Layout:
    return Layout(
        tensor=parallel.tensor_model_parallel_size,
        pipeline=parallel.pipeline_model_parallel_size,
        data=data_parallel_size(parallel, num_gpus),
        context=parallel.context_parallel_size,
        virtual=parallel.virtual_pipeline_model_parallel_size or 1,
        expert=parallel.expert_model_parallel_size,
        expert_tensor=parallel.expert_tensor_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        distributed_optimizer=parallel.use_distributed_optimizer,
        recompute=compute.recompute_granularity,
    )


def lengths_of(data: DataConfig, mean_prompt: int, mean_response: int) -> Lengths:
    """Return the caps of a configuration with assumed means, which its caps bound.

    Raises:
        ValueError: a length is below 1.
    """
    return Lengths(
        prompt=min(mean_prompt, data.max_prompt_tokens),
        response=min(mean_response, data.max_response_tokens),
        max_prompt=data.max_prompt_tokens,
        max_response=data.max_response_tokens,
    )


def count_rows(data: DataConfig) -> int | None:
    """Return the rows of a data set in files; None where it is not there, or on the Hub."""
    if not data.path or data.path.startswith(HUB) or not Path(data.path).exists():
        return None
    rows = read_file_rows(data.path, wanted_columns(data), weights=data.weights)
    return sum(not row.problem for row in rows)
