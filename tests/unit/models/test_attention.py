"""Causal, packed and masked attention against attention written out."""

import pytest
import torch
from torch import Tensor

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models.attention import (
    CoreAttention,
    RotaryTable,
    context_parallel_positions,
    one_per_head,
    packed_lengths,
)
from megatron_gad.models.build import transformer_config
from megatron_gad.models.families import load_hf_config
from tests.tiny import make_hf_folder

HEADS, GROUPS, WIDTH = 4, 2, 8


@pytest.fixture
def attention(tmp_path) -> CoreAttention:
    """Attention with two query groups of two heads, and no rotation."""
    config = transformer_config(
        load_hf_config(make_hf_folder(tmp_path)), ParallelConfig(), ComputeConfig()
    )
    return CoreAttention(RotaryTable(torch.zeros(WIDTH // 2)), config)


def random_qkv(num_tokens: int, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw query, key and value [T, B, heads or groups, width]."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(num_tokens, num_rows, heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


def attend_in_words(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Attention by its definition, head by head, position by position."""
    result = torch.zeros_like(query)
    for row in range(query.shape[1]):
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            for position in range(query.shape[0]):
                seen = allowed[position].nonzero().flatten()
                scores = key[seen, row, group] @ query[position, row, head] / WIDTH**0.5
                result[position, row, head] = scores.softmax(0) @ value[seen, row, group]
    return result.flatten(2)


def test_every_position_sees_itself_and_those_before(attention: CoreAttention) -> None:
    query, key, value = random_qkv(5, 2)
    expected = attend_in_words(query, key, value, torch.ones(5, 5).tril().bool())
    torch.testing.assert_close(attention(query, key, value, None), expected)


def test_a_mask_forbids_where_it_is_true(attention: CoreAttention) -> None:
    query, key, value = random_qkv(5, 2)
    allowed = torch.ones(5, 5).tril().bool()
    allowed[3:, 1] = False
    expected = attend_in_words(query, key, value, allowed)
    torch.testing.assert_close(attention(query, key, value, ~allowed), expected)


def test_heads_of_a_group_share_keys_and_values_where_these_are_repeated(
    attention: CoreAttention,
) -> None:
    """As on a GPU under a mask or in float32."""
    query, key, value = random_qkv(5, 2)
    expected = attend_in_words(query, key, value, torch.ones(5, 5).tril().bool())
    key, value = one_per_head(key, HEADS), one_per_head(value, HEADS)
    assert key.shape == value.shape == query.shape
    torch.testing.assert_close(attention(query, key, value, None), expected)


def test_packed_sequences_do_not_see_each_other(tmp_path) -> None:
    config = transformer_config(
        load_hf_config(make_hf_folder(tmp_path)), ParallelConfig(), ComputeConfig()
    )
    attention = CoreAttention(RotaryTable(torch.tensor([1.0, 0.3, 0.1, 0.03])), config)
    query, key, value = random_qkv(9, 1)
    assert packed_lengths([4, 1, 4], torch.device("cpu")).cu_seqlens_q.tolist() == [0, 4, 5, 9]
    # Nothing can be read from this device: a layer does not ask it for the lengths.
    packed = packed_lengths([4, 1, 4], torch.device("meta"))
    together = attention(
        query.squeeze(1), key.squeeze(1), value.squeeze(1), None, packed_seq_params=packed
    )
    alone = [
        attention(query[start:end], key[start:end], value[start:end], None).squeeze(1)
        for start, end in ((0, 4), (4, 5), (5, 9))
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_context_parallel_ranks_hold_one_early_and_one_late_chunk() -> None:
    assert context_parallel_positions(4, 2).tolist() == [[0, 1, 6, 7], [2, 3, 4, 5]]
