"""The first pass of decoding: every prompt is read once, whatever the number of its samples."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from megatron_gad.engines.kv_cache import BLOCK_COLUMNS, DecodingCache, cache_argument

# Bounds the activations of one forward pass, which are many times the cache of the same tokens.
MAX_PREFILL_TOKENS = 16384


def prefill(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    prompt_of_row: Tensor,
    max_new_tokens: int,
) -> tuple[DecodingCache, Tensor]:
    """Read the prompts and give every row a copy of its prompt's keys and values.

    prompts: token ids of P prompts; neighbours of like length waste least.
    prompt_of_row: [B] int64, which prompt each row continues.

    Returns a cache of B rows, prompts ending in its last column, zeros before their first tokens,
    with room for the first new tokens; and the logits after the prompts, [B, V].
    """
    width = max(map(len, prompts))
    prompts_per_pass = max(1, MAX_PREFILL_TOKENS // width)
    cache = DecodingCache(len(prompt_of_row), width, min(max_new_tokens, BLOCK_COLUMNS))
    logits = []
    for first in range(0, len(prompts), prompts_per_pass):
        some = prompts[first : first + prompts_per_pass]
        past, some_logits = _read(model, some)
        logits.append(some_logits)
        theirs = (prompt_of_row >= first) & (prompt_of_row < first + len(some))
        rows = theirs.nonzero()[:, 0]
        source = prompt_of_row[rows] - first
        layers: list[Any] = past.layers  # for pyright: after the pass, none is without tensors
        for number, layer in enumerate(layers):
            cache.write_prompts(number, rows, layer.keys[source], layer.values[source])
    return cache, torch.cat(logits)[prompt_of_row]


def _read(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]]
) -> tuple[DynamicCache, Tensor]:
    """Run some prompts, padded on the left; return keys and values, and the last logits [P, V]."""
    width = max(map(len, prompts))
    padded = [(0,) * (width - len(ids)) + ids for ids in prompts]
    padding = torch.tensor([width - len(ids) for ids in prompts], device=model.device)
    positions = (torch.arange(width, device=model.device) - padding[:, None]).clamp(min=0)
    past = DynamicCache(config=model.config)
    output = model(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=_causal_mask(padding, width) if int(padding.max()) else None,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **{cache_argument(type(model)): past},
    )
    return past, output.logits[:, -1]


def _causal_mask(padding: Tensor, width: int) -> Tensor:
    """Return [P, 1, width, width] bool, True where a token may look.

    Padding looks at itself, so that no row of the softmax is empty, which would give NaN.

    padding: [P] int64, empty columns at the left.
    """
    columns = torch.arange(width, device=padding.device)
    past = columns <= columns[:, None]
    itself = columns == columns[:, None]
    is_token = (columns >= padding[:, None])[:, None, None]
    return (past & is_token) | itself
