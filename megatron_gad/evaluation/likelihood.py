"""How likely a model finds the teacher's text: what SeqKD lowers, and the game may raise again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from megatron_gad.data.chat import ChatCodec
from megatron_gad.engines.hf_module import allocate_weights, build_module, copy_weights
from megatron_gad.evaluation.answers import folder_weights
from megatron_gad.evaluation.intervals import RESAMPLES_AT_ONCE, Interval
from megatron_gad.types import Message


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of one response.

    nats: sum over its tokens, the end token included if the text was not cut.
    num_tokens: number of these tokens.
    num_bytes: UTF-8 bytes of the text, by which models with other tokenizers compare.
    """

    nats: float
    num_tokens: int
    num_bytes: int


@torch.inference_mode()
def likelihoods(
    hf_folder: str | Path,
    conversations: Sequence[Sequence[Message]],
    responses: Sequence[str],
    max_response_tokens: int = 1536,
    were_cut: Sequence[bool] = (),
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Likelihood]:
    """Return how unlikely each response is after its conversation, in float32.

    A response is cut at ``max_response_tokens`` as in training; then no end token is expected.

    were_cut: of each response whether it was cut where it comes from; by default none was.
    chat_template_kwargs: further arguments of the chat template, as in data.

    Raises:
        ValueError: the folder cannot be read, or the template refuses a conversation.
    """
    codec = ChatCodec.from_folder(hf_folder, 2048, max_response_tokens, chat_template_kwargs)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_module(hf_folder, torch.float32)
    allocate_weights(model, device)
    copy_weights(model, folder_weights(hf_folder))
    found: list[Likelihood] = []
    cut = were_cut or [False] * len(responses)
    for messages, text, was_cut in zip(conversations, responses, cut, strict=True):
        prompt = codec.encode_prompt(messages)
        response, _ = codec.encode_response(text, was_cut)
        ids = torch.tensor([[*prompt, *response]], device=device)
        # The logits at a position are of the token after it.
        logits = model(input_ids=ids[:, :-1], logits_to_keep=len(response)).logits[0].float()
        logprobs = torch.log_softmax(logits, dim=-1)
        taken = logprobs.gather(1, ids[0, len(prompt) :, None])
        kept = codec.decode_response(response)
        found.append(Likelihood(-float(taken.sum()), len(response), len(kept.encode("utf-8"))))
    return found


def per_unit(
    found: Sequence[Likelihood], generator: np.random.Generator, unit: str = "num_tokens"
) -> Interval:
    """Return nats per token or byte over all responses, with its interval over prompts.

    unit: "num_tokens" or "num_bytes".
    """
    nats = np.array([each.nats for each in found])
    units = np.array([getattr(each, unit) for each in found], dtype=np.float64)
    mean = float(nats.sum() / units.sum())
    if len(found) < 2:
        return Interval(mean, float("nan"), float("nan"), len(found))
    bounds = stats.bootstrap(
        (nats, units),
        lambda nats, units, axis: nats.sum(axis) / units.sum(axis),
        n_resamples=2000,
        batch=RESAMPLES_AT_ONCE,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=generator,
    ).confidence_interval
    return Interval(mean, float(bounds.low), float(bounds.high), len(found))
