"""The keys and values of all tokens so far, in blocks of one pool whose size bounds the memory."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from megatron_gad.config.rollout import EMBEDDED_BLOCK

BLOCK_TOKENS = EMBEDDED_BLOCK
NOBODY = -1
# A region with this many blocks at least is packed again where more than half of them are unused.
PACKED_BLOCKS = 16

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class CacheShape:
    """What one token takes: layers, heads of keys and values, and their size."""

    layers: int
    heads: int
    head_size: int

    @classmethod
    def of_model(cls, config: PretrainedConfig) -> "CacheShape":
        """Read a model's configuration."""
        head_size = getattr(config, "head_dim", None)
        return cls(
            config.num_hidden_layers,
            config.num_key_value_heads,
            head_size or config.hidden_size // config.num_attention_heads,
        )


def num_blocks(num_tokens: int) -> int:
    """Return how many blocks tokens take."""
    return -(-num_tokens // BLOCK_TOKENS)


class BlockPool:
    """Memory for ``num_blocks`` blocks of BLOCK_TOKENS tokens in every layer."""

    def __init__(
        self, num_blocks: int, shape: CacheShape, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.num_blocks = num_blocks
        self.is_free = np.ones(num_blocks, dtype=bool)
        # The pages of a CPU's memory come when a block is first written to.
        self._memory = torch.empty(
            (2, shape.layers, num_blocks, shape.heads, BLOCK_TOKENS, shape.head_size),
            dtype=dtype,
            device=device,
        )
        self._is_clean = np.zeros(num_blocks, dtype=bool)

    @property
    def num_free(self) -> int:
        """How many blocks nobody has."""
        return int(self.is_free.sum())

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of a layer, [num_blocks, heads, BLOCK_TOKENS, head_size] each."""
        return self._memory[0, number], self._memory[1, number]

    def take(self, blocks: Indices) -> None:
        """Mark blocks as used. What a block holds at first is finite: a weight of 0 hides it."""
        self.is_free[blocks] = False
        unclean = blocks[~self._is_clean[blocks]]
        if len(unclean):
            index = torch.from_numpy(unclean).to(self._memory.device)
            self._memory.index_fill_(2, index, 0)
            self._is_clean[unclean] = True

    def move(self, sources: Indices, targets: Indices) -> None:
        """Move what blocks hold to free ones, one layer at a time, for the memory's sake."""
        self.take(targets)
        device = self._memory.device
        source, target = torch.from_numpy(sources).to(device), torch.from_numpy(targets).to(device)
        for layers in self._memory:
            for layer in layers:
                layer[target] = layer[source]
        self.is_free[sources] = True


class Region:
    """The blocks of a pool that hold tokens of one kind, near one of its ends.

    owners: [num_blocks] the number of each block's owner, NOBODY for blocks that are not its own.
    fill: [num_blocks] how many tokens a block holds.
    """

    def __init__(self, pool: BlockPool, *, is_at_end: bool = False) -> None:
        """is_at_end: take the last free blocks, not the first."""
        self.owners = np.full(pool.num_blocks, NOBODY)
        self.fill = np.zeros(pool.num_blocks, dtype=np.int64)
        self._pool = pool
        self._is_at_end = is_at_end

    def take(self, owner: int, num_tokens: int) -> Indices:
        """Give an owner blocks for so many tokens, one at least; return them in their order."""
        count = max(1, num_blocks(num_tokens))
        free = np.flatnonzero(self._pool.is_free)
        assert len(free) >= count, f"{len(free)} free blocks, {count} are needed"
        blocks = (free[::-1] if self._is_at_end else free)[:count].copy()
        self._pool.take(blocks)
        self.owners[blocks] = owner
        self.fill[blocks] = np.clip(num_tokens - BLOCK_TOKENS * np.arange(count), 0, BLOCK_TOKENS)
        return blocks

    def release(self, owner: int) -> None:
        """Take back all blocks of an owner."""
        blocks = np.flatnonzero(self.owners == owner)
        self.owners[blocks] = NOBODY
        self.fill[blocks] = 0
        self._pool.is_free[blocks] = True

    def span(self) -> slice:
        """Return the blocks from the first to the last of its own."""
        blocks = np.flatnonzero(self.owners != NOBODY)
        return slice(int(blocks[0]), int(blocks[-1]) + 1) if len(blocks) else slice(0, 0)

    def pack(self) -> Indices | None:
        """Move blocks together if most of their span is unused, which is read all the same.

        Returns where each block of the pool is after that, None if nothing moved.
        """
        span = self.span()
        length = span.stop - span.start
        own = np.flatnonzero(self.owners != NOBODY)
        if length < PACKED_BLOCKS or 2 * len(own) > length:
            return None
        free = np.flatnonzero(self._pool.is_free)
        farthest, nearest = (own, free[::-1]) if self._is_at_end else (own[::-1], free)
        count = min(len(own), len(free))
        sources, targets = farthest[:count].copy(), nearest[:count].copy()
        gains = targets > sources if self._is_at_end else targets < sources
        sources, targets = sources[gains], targets[gains]
        if not len(sources):
            return None
        self._pool.move(sources, targets)
        places = np.arange(self._pool.num_blocks)
        places[sources] = targets
        for values, nothing in ((self.owners, NOBODY), (self.fill, 0)):
            values[targets] = values[sources]
            values[sources] = nothing
        return places
