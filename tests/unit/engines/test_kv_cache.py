"""Blocks of keys and values: who has which, and that they keep what they hold."""

import numpy as np
import pytest
import torch

from megatron_gad.engines.kv_cache import BLOCK_TOKENS, NOBODY, BlockPool, CacheShape, Region

SHAPE = CacheShape(layers=2, heads=1, head_size=3)


def make_pool(num_blocks: int) -> BlockPool:
    return BlockPool(num_blocks, SHAPE, torch.device("cpu"), torch.float32)


def mark(pool: BlockPool, blocks: np.ndarray, value: int) -> None:
    for layer in range(SHAPE.layers):
        keys, values = pool.layer(layer)
        keys[blocks] = 10.0 * value + layer
        values[blocks] = -10.0 * value - layer


def test_a_region_fills_a_pool_from_its_own_end_and_gives_all_back():
    pool = make_pool(6)
    responses, prompts = Region(pool), Region(pool, is_at_end=True)
    assert responses.take(7, 2 * BLOCK_TOKENS + 1).tolist() == [0, 1, 2]
    assert prompts.take(0, BLOCK_TOKENS).tolist() == [5]
    assert responses.fill.tolist() == [BLOCK_TOKENS, BLOCK_TOKENS, 1, 0, 0, 0]
    assert responses.owners.tolist() == [7, 7, 7, NOBODY, NOBODY, NOBODY]
    assert (responses.span(), prompts.span()) == (slice(0, 3), slice(5, 6))
    assert pool.num_free == 2
    responses.release(7)
    assert (pool.num_free, responses.span()) == (5, slice(0, 0))
    assert responses.fill.sum() == 0
    assert responses.take(8, 0).tolist() == [0]  # a row that begins has a block without tokens
    with pytest.raises(AssertionError, match="4 free blocks, 5 are needed"):
        prompts.take(1, 5 * BLOCK_TOKENS)


def test_a_block_holds_finite_numbers_before_anything_was_written():
    pool = make_pool(3)
    for layer in range(SHAPE.layers):
        for held in pool.layer(layer):
            held.fill_(torch.nan)
    blocks = Region(pool).take(0, 2 * BLOCK_TOKENS)
    for layer in range(SHAPE.layers):
        for held in pool.layer(layer):
            assert held[blocks].eq(0).all()
            assert held[2].isnan().all()


@pytest.mark.parametrize("is_at_end", [False, True])
def test_packed_blocks_keep_their_owners_and_what_they_hold(is_at_end):
    pool = make_pool(40)
    region = Region(pool, is_at_end=is_at_end)
    for owner in range(20):
        mark(pool, region.take(owner, 2 * BLOCK_TOKENS - owner), owner)
    assert region.pack() is None  # no gap yet
    before = {owner: np.flatnonzero(region.owners == owner) for owner in (3, 11, 19)}
    fill = {owner: region.fill[blocks] for owner, blocks in before.items()}
    for owner in set(range(20)) - set(before):
        region.release(owner)
    places = region.pack()
    assert places is not None
    assert region.span() == (slice(34, 40) if is_at_end else slice(0, 6))
    assert pool.num_free == 34
    for owner, blocks in before.items():
        moved = places[blocks]
        assert set(moved) == set(np.flatnonzero(region.owners == owner))
        assert region.fill[moved].tolist() == fill[owner].tolist()
        for layer in range(SHAPE.layers):
            keys, values = pool.layer(layer)
            assert keys[moved].eq(10.0 * owner + layer).all()
            assert values[moved].eq(-10.0 * owner - layer).all()
