"""Texts whose keys and values a model has yet to compute: prompts, and responses once more."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from megatron_gad.engines.kv_cache import BLOCK_TOKENS, BlockPool, Indices
from megatron_gad.engines.paged_attention import cache_argument

# Bounds the activations of one forward pass, which are many times the cache of the same tokens.
MAX_PREFILL_TOKENS = 16384


@dataclass(frozen=True)
class Text:
    """Token ids to read from the first on.

    num_held: first tokens whose keys and values are in the pool already.
    blocks: where those of the other tokens go, in their order.
    """

    ids: Sequence[int]
    num_held: int
    blocks: Indices


def read(model: PreTrainedModel, pool: BlockPool, texts: Sequence[Text]) -> Tensor:
    """Compute and keep the keys and values of texts. Returns the logits after each, [P, V]."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    logits: dict[int, Tensor] = {}
    while order:
        # Neighbours of like length waste least; the longest comes first.
        count = max(1, MAX_PREFILL_TOKENS // len(texts[order[-1]].ids))
        some, order = order[-count:], order[:-count]
        logits.update(zip(some, _read(model, pool, [texts[i] for i in some]), strict=True))
    return torch.stack([logits[i] for i in range(len(texts))])


def _read(model: PreTrainedModel, pool: BlockPool, texts: Sequence[Text]) -> Tensor:
    """Read texts in one pass. They are padded on the right, where no token looks."""
    device, width = model.device, max(len(text.ids) for text in texts)
    padded = [[*text.ids, *[0] * (width - len(text.ids))] for text in texts]
    last = torch.tensor([len(text.ids) - 1 for text in texts], device=device)
    base = model.model
    output = base(
        input_ids=torch.tensor(padded, device=device),
        position_ids=torch.arange(width, device=device)[None],
        use_cache=True,
        **{cache_argument(type(base)): _PromptCache(pool, texts, device)},
    )
    return model.lm_head(output.last_hidden_state[torch.arange(len(texts), device=device), last])


class _PromptCache:
    """What the attention layers of a transformers model write whole texts to."""

    is_compileable = False

    def __init__(self, pool: BlockPool, texts: Sequence[Text], device: torch.device) -> None:
        self._pool = pool
        parts = [_places(row, text) for row, text in enumerate(texts)]
        places = torch.from_numpy(np.concatenate(parts, axis=1)).to(device)
        self._rows, self._columns, self._blocks, self._offsets = places

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Keep what is not padding; return all as it is. Both: [P, heads, width, size]."""
        for held, states in zip(
            self._pool.layer(layer_idx), (key_states, value_states), strict=True
        ):
            held[self._blocks, :, self._offsets] = states[self._rows, :, self._columns]
        return key_states, value_states


def _places(row: int, text: Text) -> Indices:
    """Return [4, tokens to keep]: row and column in the pass, block and offset in the pool."""
    columns = np.arange(text.num_held, len(text.ids))
    number = columns - text.num_held
    return np.stack(
        (
            np.full(len(columns), row),
            columns,
            text.blocks[number // BLOCK_TOKENS],
            number % BLOCK_TOKENS,
        )
    )
