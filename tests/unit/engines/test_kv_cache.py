"""The decoding cache against plain concatenation."""

import torch

from megatron_gad.engines.kv_cache import BLOCK_COLUMNS, DecodingCache


def random_states(num_rows: int, num_columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, 2, num_columns, 4, generator=generator)


def test_columns_written_one_by_one_read_like_a_concatenation_over_several_blocks():
    prompt = random_states(3, 5, seed=0)
    cache = DecodingCache(num_rows=3, length=5, room=2)
    cache.write_prompts(0, torch.arange(3), prompt, -prompt)
    new = random_states(3, BLOCK_COLUMNS + 10, seed=1)
    for column in range(new.shape[2]):
        keys, values = cache.update(
            new[:, :, column : column + 1], -new[:, :, column : column + 1], 0
        )
        cache.length += 1
    expected = torch.cat((prompt, new), dim=2)
    assert torch.equal(keys, expected)
    assert torch.equal(values, -expected)


def test_prompts_end_in_the_same_column_with_zeros_before_them():
    long, short = random_states(1, 5, seed=0), random_states(2, 3, seed=1)
    cache = DecodingCache(num_rows=3, length=5, room=1)
    cache.write_prompts(0, torch.tensor([1]), long, long)
    cache.write_prompts(0, torch.tensor([2, 0]), short, short)
    new = random_states(3, 1, seed=2)
    keys, _ = cache.update(new, new, 0)
    zeros = torch.zeros(2, 2, 2, 4)
    assert torch.equal(keys[1], torch.cat((long[0], new[1]), dim=1))
    assert torch.equal(keys[[2, 0]], torch.cat((zeros, short, new[[2, 0]]), dim=2))


def test_kept_rows_keep_their_own_columns():
    prompt = random_states(4, 3, seed=0)
    cache = DecodingCache(num_rows=4, length=3, room=4)
    cache.write_prompts(0, torch.arange(4), prompt, -prompt)
    cache.keep_rows(torch.tensor([3, 1]))
    new = random_states(2, 1, seed=1)
    keys, values = cache.update(new, -new, 0)
    expected = torch.cat((prompt[[3, 1]], new), dim=2)
    assert torch.equal(keys, expected)
    assert torch.equal(values, -expected)
