"""Seconds of sampling: prefill, decoding with a full batch, and the tail of the longest rows."""

from dataclasses import dataclass

from megatron_gad.config.stage_section import StageWork
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.memory import engine_weight_bytes, kv_bytes_per_token
from megatron_gad.planning.request import Request


@dataclass(frozen=True)
class RolloutTime:
    """Seconds of the parts; batch: rows that one copy of the engine decodes at once."""

    prefill: float
    body: float
    tail: float
    batch: int

    @property
    def total(self) -> float:
        """Return all of it."""
        return self.prefill + self.body + self.tail


def rollout_time(
    request: Request, layout: Layout, work: StageWork, cache_tokens: int
) -> RolloutTime:
    """Return the seconds that sampling a step's responses takes.

    Replicas share the samples evenly. All rows decode together as far as the cache holds them, for
    the mean length; then the few longest go on alone to the cap, at a small batch. A replay takes
    no time.

    cache_tokens: tokens that fit the KV cache of one copy of the engine.
    """
    if not work.num_samples or request.engine.kind == "replay":
        return RolloutTime(0.0, 0.0, 0.0, 0)
    lengths, assume = request.lengths, request.assume
    samples = -(-work.num_samples // layout.num_engines)
    batch = int(
        max(1, min(samples, cache_tokens // lengths.row, request.engine.max_rows or samples))
    )
    # The samples of one prompt share its prefill.
    num_prompts = max(1.0, samples / max(1, work.group_size))
    flops = 2 * request.student.multiplied_parameters() * num_prompts * lengths.prompt
    speed = request.device.bf16_flops * assume.mfu * layout.engine_tensor
    context = lengths.prompt + lengths.response / 2
    body = samples * lengths.response / batch * decode_seconds(request, layout, batch, context)
    few = max(1.0, assume.tail_share * batch)
    context = lengths.prompt + (lengths.response + lengths.max_response) / 2
    steps = lengths.max_response - lengths.response
    tail = steps * decode_seconds(request, layout, few, context)
    return RolloutTime(flops / speed, body, tail, batch)


def decode_seconds(request: Request, layout: Layout, batch: float, context: float) -> float:
    """Return the seconds of one decoding iteration on one copy of the engine.

    It reads the weights (of the experts those that the batch reaches) while it multiplies, reads
    keys and values, and, tensor parallel, exchanges activations in every layer.

    batch: rows; context: mean tokens that each row attends to.
    """
    device, assume, shape = request.device, request.assume, request.student
    weights = engine_weight_bytes(shape, layout, request.precision) * _share_read(request, batch)
    bandwidth = device.hbm_bandwidth * assume.hbm_efficiency
    speed = device.bf16_flops * assume.mfu * layout.engine_tensor
    multiplied = 2 * shape.multiplied_parameters() * batch / speed
    cache = batch * context * kv_bytes_per_token(shape, layout, request.precision) / bandwidth
    exchange = assume.decode_layer_seconds * shape.num_layers if layout.engine_tensor > 1 else 0.0
    return max(weights / bandwidth, multiplied) + cache + exchange + assume.decode_seconds


def _share_read(request: Request, batch: float) -> float:
    """Return the share of the weights that one iteration reads.

    An expert is read if any row is sent to it: 1 - (1 - k / E)^batch of them.
    """
    shape = request.student
    if not shape.num_moe_layers:
        return 1.0
    experts = shape.num_moe_layers * shape.num_experts * shape.expert_parameters
    reached = 1 - (1 - shape.experts_per_token / shape.num_experts) ** batch
    total = shape.num_parameters()
    return (total - experts * (1 - reached)) / total
