"""Requests to SGLang servers, and what their answers have to be."""

import math
import uuid
from collections.abc import Iterator, Sequence

from megatron_gad.engines.base import SamplingConfig, finish_reason, request_seed
from megatron_gad.engines.sglang.client import Json, ServerFailed
from megatron_gad.types import FinishReason, Prompt, Rollout

FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


def make_requests(prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Json]:
    """Yield one request per response, the samples of a prompt one after the other.

    All settings of the sampling are given, since a server takes others from its model's folder. No
    token is left out: the student is trained as the whole distribution.
    """
    shared = {
        "temperature": sampling.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "max_new_tokens": sampling.max_new_tokens,
        "stop_token_ids": list(sampling.stop_ids),
        "ignore_eos": not sampling.stop_ids,
    }
    for prompt in prompts:
        for sample in range(sampling.num_samples):
            seed = request_seed(sampling.seed, prompt.index, sample)
            yield {
                "rid": uuid.uuid4().hex,
                "input_ids": list(prompt.ids),
                "sampling_params": {**shared, "sampling_seed": seed},
                "return_logprob": True,
            }


def read_answer(answer: Json, sampling: SamplingConfig, version: int) -> Rollout:
    """Return the rollout in an answer.

    Raises ServerFailed for an answer that is broken, was cut short by the server, came from other
    weights than ``version``, or disagrees with the sampling asked for; and ValueError where the
    server has stop ids of its own, whose responses must not be left out.
    """
    try:
        ids = tuple(int(token) for token in answer["output_ids"])
        meta = answer["meta_info"]
        pairs = [(float(entry[0]), int(entry[1])) for entry in meta["output_token_logprobs"]]
        reason = str(meta["finish_reason"]["type"])
        answered_version = str(meta["weight_version"])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ServerFailed(f"broken answer ({error!r}): {str(answer)[:300]}") from error
    problem = _problem(ids, pairs, reason, sampling.max_new_tokens)
    if answered_version != str(version):
        problem = f"it holds weights_version {answered_version}, not {version}"
    if problem:
        raise ServerFailed(f"unusable answer: {problem}")
    if reason == "stop" and ids[-1] not in sampling.stop_ids:
        raise ValueError(
            f"a response stopped at id {ids[-1]}, which is none of the run's stop ids "
            f"{sampling.stop_ids}: the SGLang server adds the end token of its model folder; serve "
            "one whose config.json and generation_config.json name none"
        )
    logprobs = tuple(logprob for logprob, _ in pairs)
    reason = finish_reason(ids, sampling.stop_ids, FINISH_REASONS[reason])
    return Rollout(ids, logprobs, reason, version)


def cached_tokens(answer: Json) -> int:
    """Return how many tokens of a prompt the server had in its cache; 0 if it does not say."""
    meta = answer.get("meta_info")
    count = meta.get("cached_tokens") if isinstance(meta, dict) else None
    return count if isinstance(count, int) else 0


def _problem(
    ids: tuple[int, ...],
    pairs: list[tuple[float, int]],
    reason: str,
    most: int,
) -> str:
    """Return what is wrong with a response, "" if nothing is."""
    if reason not in FINISH_REASONS:
        return f"its finish reason is {reason!r}"
    if tuple(token for _, token in pairs) != ids or not ids:
        return f"{len(pairs)} log-probabilities for {len(ids)} token ids"
    if not all(math.isfinite(logprob) and logprob <= 0 for logprob, _ in pairs):
        return "log-probabilities that are none"
    if len(ids) > most:
        return f"{len(ids)} token ids, asked for {most} at most"
    return ""
