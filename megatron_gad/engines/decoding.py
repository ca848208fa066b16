"""Batched decoding with a transformers model: prompts once, then a token per row and step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.kv_cache import DecodingCache, cache_argument
from megatron_gad.engines.prefill import prefill
from megatron_gad.engines.sampling import sample_tokens, uniform_draws
from megatron_gad.types import FinishReason

# Rows that have ended are computed along until they are this share of the batch.
DROPPED_SHARE = 0.25


@dataclass(frozen=True)
class Request:
    """One response to sample: the prompt's token ids, and the seed of every draw."""

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Response:
    """What was sampled for a request: ids, their logprobs, and why it ended."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@dataclass
class _LiveRows:
    """The rows that are still decoded. B is their number; it only shrinks.

    rows: [B] int64, position of each in the list of requests.
    positions: [B] int64, position of the next token in its text.
    uniforms: [B, max_new_tokens] float64, the draws of every step.
    ended: [B] bool, True after a stop id.
    mask: [B, 1, 1, columns] bool, True where there is a token; None where no row has padding.
    """

    rows: Tensor
    positions: Tensor
    uniforms: Tensor
    ended: Tensor
    mask: Tensor | None
    cache: DecodingCache

    def forward(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        """Append a token to every row. ids: [B] int64. Returns the next logits, [B, V]."""
        mask = None if self.mask is None else self.mask[..., : self.cache.length + 1]
        output = model(
            input_ids=ids[:, None],
            attention_mask=mask,
            position_ids=self.positions[:, None],
            use_cache=True,
            **{cache_argument(type(model)): self.cache},
        )
        self.cache.length += 1
        self.positions += 1
        return output.logits[:, -1]

    def drop_ended(self) -> Tensor:
        """Forget the rows that have ended. Returns which rows stay, [kept] int64."""
        kept = (~self.ended).nonzero()[:, 0]
        self.rows, self.positions = self.rows[kept], self.positions[kept]
        self.uniforms, self.ended = self.uniforms[kept], self.ended[kept]
        self.mask = None if self.mask is None else self.mask[kept]
        self.cache.keep_rows(kept)
        return kept


@torch.inference_mode()
def decode(
    model: PreTrainedModel, requests: Sequence[Request], sampling: SamplingConfig
) -> list[Response]:
    """Sample one response per request, all in one batch, in the order given."""
    max_new_tokens = sampling.max_new_tokens
    live, logits = _start(model, requests, max_new_tokens)
    is_stop = _stop_table(sampling.stop_ids, logits)
    tokens = torch.zeros(len(requests), max_new_tokens, dtype=torch.int64, device=model.device)
    logprobs = torch.zeros(len(requests), max_new_tokens, device=model.device)
    for step in range(max_new_tokens):
        ids, ids_logprobs = sample_tokens(logits, live.uniforms[:, step], sampling)
        tokens[live.rows, step] = ids
        logprobs[live.rows, step] = ids_logprobs
        live.ended |= is_stop[ids]
        num_ended = int(live.ended.sum())
        if num_ended == len(ids) or step + 1 == max_new_tokens:
            break
        if num_ended >= DROPPED_SHARE * len(ids):
            ids = ids[live.drop_ended()]
        logits = live.forward(model, ids)
    return _responses(tokens, logprobs, is_stop)


def _start(
    model: PreTrainedModel, requests: Sequence[Request], max_new_tokens: int
) -> tuple[_LiveRows, Tensor]:
    """Read every distinct prompt once. Returns the rows and the logits of their first tokens."""
    device = model.device
    slots = {ids: slot for slot, ids in enumerate(dict.fromkeys(r.prompt_ids for r in requests))}
    prompt_of_row = torch.tensor([slots[r.prompt_ids] for r in requests], device=device)
    cache, logits = prefill(model, list(slots), prompt_of_row, max_new_tokens)
    lengths = torch.tensor([len(r.prompt_ids) for r in requests], device=device)
    mask = None
    if int(lengths.min()) < cache.length:
        columns = torch.arange(cache.length + max_new_tokens, device=device)
        mask = (columns >= (cache.length - lengths)[:, None])[:, None, None]
    live = _LiveRows(
        rows=torch.arange(len(requests), device=device),
        positions=lengths,
        uniforms=uniform_draws([r.seed for r in requests], max_new_tokens).to(device),
        ended=torch.zeros(len(requests), dtype=torch.bool, device=device),
        mask=mask,
        cache=cache,
    )
    return live, logits


def _stop_table(stop_ids: Sequence[int], logits: Tensor) -> Tensor:
    """Return [V] bool, True at the stop ids."""
    vocab_size = logits.shape[-1]
    beyond = [i for i in stop_ids if not 0 <= i < vocab_size]
    if beyond:
        raise ValueError(
            f"stop_ids = {beyond} are not ids of this model, which has {vocab_size}; "
            "take them from the model's own tokenizer"
        )
    is_stop = torch.zeros(vocab_size, dtype=torch.bool, device=logits.device)
    is_stop[list(stop_ids)] = True
    return is_stop


def _responses(tokens: Tensor, logprobs: Tensor, is_stop: Tensor) -> list[Response]:
    """Cut every row after its first stop id. tokens, logprobs: [B, max_new_tokens]."""
    stops = is_stop[tokens]
    stopped = stops.any(dim=1)
    lengths = torch.where(stopped, stops.int().argmax(dim=1) + 1, tokens.shape[1])
    rows = zip(tokens.tolist(), logprobs.tolist(), lengths.tolist(), stopped.tolist(), strict=True)
    return [
        Response(tuple(ids[:length]), tuple(values[:length]), "stop" if ended else "length")
        for ids, values, length, ended in rows
    ]
