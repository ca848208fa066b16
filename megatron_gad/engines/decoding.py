"""Decoding with a transformers model: prompts once, then a token per live row and step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from megatron_gad.engines.base import EngineWork, SamplingConfig
from megatron_gad.engines.kv_cache import (
    BLOCK_TOKENS,
    NOBODY,
    BlockPool,
    CacheShape,
    Indices,
    Region,
    num_blocks,
)
from megatron_gad.engines.paged_attention import DecodingCache, Reads, cache_argument
from megatron_gad.engines.prefill import read
from megatron_gad.engines.sampling import sample_tokens
from megatron_gad.engines.scheduling import Joined, Request, Row, Schedule, SharedPrompt
from megatron_gad.types import FinishReason


@dataclass(frozen=True)
class Response:
    """What was sampled for a request: ids, their logprobs, and why it ended."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    max_total_tokens: int,
) -> tuple[list[Response], EngineWork]:
    """Sample one response per request, and return them in the order given, and the work.

    max_total_tokens: whose keys and values are held at a time; rounded up to whole blocks.

    Raises ValueError if one prompt and its response are longer than that, and for stop ids that
    the model does not have.
    """
    _check_stop_ids(sampling.stop_ids, model.config.vocab_size)
    if not requests:
        return [], EngineWork()
    size = _pool_size(requests, sampling.max_new_tokens, max_total_tokens)
    pool = BlockPool(size, CacheShape.of_model(model.config), model.device, model.dtype)
    schedule = Schedule(requests, pool, sampling.max_new_tokens)
    while schedule.waiting or schedule.live:
        joined = schedule.join()
        if joined.rows:
            _sample(schedule, joined.rows, _read(model, pool, joined), sampling)
        schedule.extend()
        if schedule.live:
            _sample(schedule, list(schedule.live), _forward(model, pool, schedule), sampling)
    responses = [_response(row, sampling) for row in sorted(schedule.ended, key=lambda r: r.number)]
    tokens = sum(len(response.ids) for response in responses)
    return responses, replace(schedule.work, tokens=tokens)


def _pool_size(requests: Sequence[Request], max_new_tokens: int, max_total_tokens: int) -> int:
    """Return the blocks of the pool: not more than all requests take at their longest."""
    new = num_blocks(max_new_tokens)
    prompts = [num_blocks(len(ids)) for ids in {request.prompt_ids for request in requests}]
    longest = max(len(request.prompt_ids) for request in requests)
    allowed = num_blocks(max_total_tokens)
    if max(prompts) + new > allowed:
        raise ValueError(
            f"rollout.max_total_tokens = {max_total_tokens} has no room for a prompt of {longest} "
            f"tokens with a response of {max_new_tokens}, which take whole blocks of "
            f"{BLOCK_TOKENS}; make it at least {(max(prompts) + new) * BLOCK_TOKENS}"
        )
    return min(allowed, sum(prompts) + new * len(requests))


def _read(model: PreTrainedModel, pool: BlockPool, joined: Joined) -> Tensor:
    """Read what is new. Returns the logits of the next token of every row that joined, [J, V]."""
    texts = [*joined.prompts.values(), *joined.resumed.values()]
    logits = read(model, pool, texts) if texts else torch.empty(0)
    after: dict[SharedPrompt | Row, Tensor]
    after = dict(zip((*joined.prompts, *joined.resumed), logits, strict=True))
    for prompt in joined.prompts:
        prompt.logits = after[prompt]
    rows = [after.get(row, row.prompt.logits) for row in joined.rows]
    for row in joined.rows:
        if not row.prompt.num_waiting:
            row.prompt.logits = None
    return torch.stack([each for each in rows if each is not None])


def _forward(model: PreTrainedModel, pool: BlockPool, schedule: Schedule) -> Tensor:
    """Append the last id of every live row. Returns the logits after it, [B, V]."""
    rows, device = schedule.live, model.device
    state = [
        (row.ids[-1], len(row.prompt.ids) + len(row.ids) - 1, row.block, row.offset) for row in rows
    ]
    ids, positions, blocks, offsets = torch.tensor(state).to(device).unbind(dim=1)
    cache = DecodingCache(pool, blocks, offsets, _reads(schedule, device))
    output = model(
        input_ids=ids[:, None],
        attention_mask=None,
        position_ids=positions[:, None],
        use_cache=True,
        **{cache_argument(type(model)): cache},
    )
    return output.logits[:, -1]


def _reads(schedule: Schedule, device: torch.device) -> tuple[Reads, Reads]:
    """Return which live rows read which blocks of responses, and of prompts."""
    live = schedule.live
    nobody = len(live)
    of_rows = np.full((schedule.num_requests + 1, 1), nobody)
    of_rows[[row.number for row in live], 0] = np.arange(nobody)
    most = max(row.prompt.num_live for row in live)
    of_prompts, counts = np.full((len(schedule.prompts) + 1, most), nobody), {}
    for index, row in enumerate(live):
        place = counts.get(row.prompt, 0)
        of_prompts[row.prompt.number, place] = index
        counts[row.prompt] = place + 1
    return (
        _region_reads(schedule.response_region, of_rows, device),
        _region_reads(schedule.prompt_region, of_prompts, device),
    )


def _region_reads(region: Region, rows_of_owner: Indices, device: torch.device) -> Reads:
    """rows_of_owner: [owners + 1, G], the last line for NOBODY."""
    assert NOBODY == -1
    span = region.span()
    rows = torch.from_numpy(rows_of_owner[region.owners[span]]).to(device)
    # A block of nobody's counts as begun, so that no softmax is empty.
    fill = torch.from_numpy(np.maximum(region.fill[span], 1)).to(device)
    is_empty = torch.arange(BLOCK_TOKENS, device=device) >= fill[:, None]
    return Reads(span, rows, is_empty[:, None, None])


def _sample(
    schedule: Schedule, rows: Sequence[Row], logits: Tensor, sampling: SamplingConfig
) -> None:
    """Draw the next token of rows, and end those that it is the last of. logits: [B, V]."""
    uniforms = torch.from_numpy(np.array([row.uniforms[len(row.ids)] for row in rows]))
    ids, logprobs = sample_tokens(logits, uniforms.to(logits.device), sampling)
    for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
        row.ids.append(token)
        row.logprobs.append(logprob)
    schedule.end([row for row in rows if _has_ended(row, sampling)])


def _has_ended(row: Row, sampling: SamplingConfig) -> bool:
    return row.ids[-1] in sampling.stop_ids or len(row.ids) == sampling.max_new_tokens


def _check_stop_ids(stop_ids: Sequence[int], vocab_size: int) -> None:
    beyond = [i for i in stop_ids if not 0 <= i < vocab_size]
    if beyond:
        raise ValueError(
            f"stop_ids = {beyond} are not ids of this model, which has {vocab_size}; "
            "take them from the model's own tokenizer"
        )


def _response(row: Row, sampling: SamplingConfig) -> Response:
    reason = "stop" if row.ids[-1] in sampling.stop_ids else "length"
    return Response(tuple(row.ids), tuple(row.logprobs), reason)
