"""Who leaves the device in a run that is about to start, on the device that it has."""

from dataclasses import replace

import torch

from megatron_gad.config.rollout import EMBEDDED_ROWS
from megatron_gad.config.run import RunConfig
from megatron_gad.models.families import load_hf_config
from megatron_gad.planning.choice import Residency, caveats, choose_residency
from megatron_gad.planning.devices import (
    DEVICES,
    GIB,
    Assumptions,
    Device,
    device_named,
    device_of,
)
from megatron_gad.planning.from_config import configured_layout, lengths_of, plan_request
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.memory import engine_weight_bytes, kv_bytes_per_token
from megatron_gad.planning.request import EngineUse, Request
from megatron_gad.planning.shapes import ModelShape, shape_from_config
from megatron_gad.planning.time import stage_times

# Of a run that has no means given: they decide about seconds, and bound no memory.
MEAN_PROMPT, MEAN_RESPONSE = 150, 400
UNBOUNDED = 2**60


def plan_residency(config: RunConfig, world_size: int, gpu_type: str | None = None) -> Residency:
    """Return who leaves the devices of a run, what each phase then needs, and what it takes.

    Looks at the device if there is one, and starts nothing.

    gpu_type: of GPUs that need not be here, from ``DEVICES``.
    """
    schedule = config.schedule
    device, source, is_known = _device_of_run(gpu_type, schedule.device_memory_gib)
    assume = bounded(Assumptions(), device, schedule.device_memory_gib)
    student = _shape(config.student.path)
    discriminator = _shape(config.discriminator.path or config.student.path)
    layout = configured_layout(config, world_size, has_experts=discriminator.num_experts > 0)
    request = plan_request(
        config,
        (student, discriminator),
        device,
        world_size,
        lengths_of(config.data, MEAN_PROMPT, MEAN_RESPONSE),
        replace(assume, bucket_bytes=_bucket_bytes(config, student)),
    )
    if "white_box" in config.stages and not config.white_box.is_served:
        request = replace(request, teacher=_shape(config.white_box.teacher))
    request = replace(request, engine=engine_use(config, request, layout))
    memory = choose_residency(request, layout, schedule.leaves)
    reason = "as schedule.leaves says" if schedule.leaves is not None else source
    if not is_known or (request.is_fp8 and not device.fp8_flops):
        return Residency(memory, reason)
    stages = stage_times(request, layout, memory)
    return Residency(memory, reason, stages, tuple(caveats(request)))


def bounded(assume: Assumptions, device: Device, memory_gib: float | None) -> Assumptions:
    """Return assumptions that leave a run as much of a device as schedule.device_memory_gib."""
    if memory_gib is None:
        return assume
    reserved = max(0, device.memory_bytes - int(memory_gib * GIB))
    return replace(assume, reserved_bytes=reserved, reserved_share=0.0)


def engine_use(config: RunConfig, request: Request, layout: Layout) -> EngineUse:
    """Return what the engine of a run takes of the devices, which is settled before it starts."""
    if config.rollout.engine == "replay":
        return EngineUse("replay", 0)
    if config.rollout.engine == "embedded":
        samples = max(-(-int(stage.num_samples) // layout.data) for stage in request.stages)
        most = min(config.rollout.max_total_tokens, samples * request.lengths.max_row)
        return EngineUse("embedded", most, max_rows=min(EMBEDDED_ROWS, samples))
    servers = free_servers(config)
    if config.sglang.urls:
        return replace(servers, kind="elsewhere")
    if request.device.memory_bytes == UNBOUNDED:
        return servers
    share = int(config.sglang.mem_fraction_static * request.device.memory_bytes)
    weights = engine_weight_bytes(request.student, layout, request.precision)
    each = kv_bytes_per_token(request.student, layout, request.precision)
    return replace(servers, cache_tokens=max(0, share - weights) // each)


def free_servers(config: RunConfig) -> EngineUse:
    """Return SGLang servers whose cache takes what the phases leave."""
    rows = config.sglang.max_running_requests
    return EngineUse("servers", max_rows=rows, keeps_weights=True)


def _shape(folder: str) -> ModelShape:
    return shape_from_config(load_hf_config(folder).to_dict())


def _device_of_run(gpu_type: str | None, memory_gib: float | None) -> tuple[Device, str, bool]:
    """Return the device that a run has, how that is known, and whether its speed is.

    The speeds of a type that is not in the table are those of another: they only order moves.
    """
    device, is_known = DEVICES["h100-80g"], False
    if gpu_type is not None:
        device, is_known = device_of(gpu_type), True
        source = f"for {gpu_type}"
    elif torch.cuda.is_available():
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        named = device_named(found.name)
        device, is_known = (
            replace(named or device, memory_bytes=found.total_memory),
            named is not None,
        )
        source = f"for the {found.total_memory / GIB:.1f} GiB of {found.name}"
    else:
        memory_bytes = UNBOUNDED if memory_gib is None else int(memory_gib * GIB)
        device = replace(device, memory_bytes=memory_bytes)
        source = "there is no GPU whose memory bounds it"
    if memory_gib is not None:
        source = f"for schedule.device_memory_gib = {memory_gib:g}"
    return device, source, is_known


def _bucket_bytes(config: RunConfig, student: ModelShape) -> int:
    """Return the bytes of a weight swap's bucket; the embedded engine takes tensor by tensor."""
    if config.rollout.engine == "sglang":
        return config.sglang.update_weight_buffer_size
    return student.vocab_size * student.hidden_size * (2 if config.compute.bf16 else 4)
