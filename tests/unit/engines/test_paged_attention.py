"""Attention to scattered and shared blocks against torch's, row by row over one piece of memory."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from megatron_gad.engines.kv_cache import BLOCK_TOKENS, BlockPool, CacheShape
from megatron_gad.engines.paged_attention import DecodingCache, HeldBlocks, Reads

HEADS, QUERY_HEADS, SIZE = 2, 6, 8


def reads(first: int, rows: list[list[int]], fill: list[int]) -> Reads:
    empty = torch.arange(BLOCK_TOKENS) >= torch.tensor(fill)[:, None]
    return Reads(slice(first, first + len(rows)), torch.tensor(rows), empty[:, None, None])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_each_row_attends_to_its_own_blocks_and_to_those_it_shares(dtype, bound):
    generator = torch.Generator().manual_seed(0)
    shape = (9, HEADS, BLOCK_TOKENS, SIZE)
    # Scores of up to about 50: their exponentials need a maximum that is the row's.
    keys = (4 * torch.randn(shape, generator=generator)).to(dtype)
    values = torch.randn(shape, generator=generator).to(dtype)
    query = (4 * torch.randn(3, QUERY_HEADS, 1, SIZE, generator=generator)).to(dtype)
    full, nobody = BLOCK_TOKENS, 3
    # Row 0 has the blocks 2, 0; row 1 has 1; row 2 has 4 and reads no prompt's; 3 is unused.
    own = reads(0, [[0], [1], [0], [nobody], [2]], [5, full, full, 1, 1])
    # Rows 0 and 1 share a prompt in the blocks 8, 7. In 6 there is another's, which has ended.
    shared = reads(6, [[nobody, nobody], [1, 0], [0, 1]], [9, 40, full])
    actual = HeldBlocks(keys, values, (own, shared)).attend(query, SIZE**-0.5)

    def expected(row: int, pieces: list[tuple[int, int]]) -> torch.Tensor:
        def joined(held: torch.Tensor) -> torch.Tensor:
            tokens = torch.cat([held[block, :, :fill] for block, fill in pieces], dim=1)
            return tokens.repeat_interleave(QUERY_HEADS // HEADS, dim=0).float()

        return scaled_dot_product_attention(query[row].float(), joined(keys), joined(values))

    of_rows = [[(2, full), (0, 5), (8, full), (7, 40)], [(1, full), (8, full), (7, 40)], [(4, 1)]]
    for row, pieces in enumerate(of_rows):
        torch.testing.assert_close(
            actual[row, 0].float(), expected(row, pieces)[:, 0], rtol=0, atol=bound
        )


def test_a_new_token_is_written_where_its_row_says_and_read_at_once():
    pool = BlockPool(4, CacheShape(1, HEADS, SIZE), torch.device("cpu"), torch.float32)
    for held in pool.layer(0):
        held.zero_()
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(2, HEADS, 1, SIZE, generator=generator)
    places = torch.tensor([3, 1]), torch.tensor([0, 7])
    cache = DecodingCache(pool, *places, (reads(0, [[2], [1], [2], [0]], [1, 8, 1, 1]),))
    held, same = cache.update(new, -new, 0)
    assert held is same
    assert torch.equal(pool.layer(0)[0][3, :, 0], new[0, :, 0])
    assert torch.equal(pool.layer(0)[1][1, :, 7], -new[1, :, 0])
    query = torch.randn(2, QUERY_HEADS, 1, SIZE, generator=generator)
    # Row 0 sees its one token alone, so its answer is that token's value.
    expected = -new[0].repeat_interleave(QUERY_HEADS // HEADS, dim=0)[:, 0]
    torch.testing.assert_close(held.attend(query, 1.0)[0, 0], expected)
