"""Causal, packed and masked attention against attention written out."""

from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

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
from megatron_gad.models.gathering import GatheringAttention, with_gathered_keys
from megatron_gad.models.layers import local_block_spec
from megatron_gad.models.shared_attention import _by_gathering, attend_shared, spans_of
from tests.kernel_by_hand import KernelByHand
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


# Two sequences that go on from the first three tokens of the first, and one for itself.
LENGTHS, STARTS, SOURCES = (5, 2, 3, 1), (0, 3, 0, 3), (0, 0, 0, 0)


def whole_rows_of(tensor: Tensor) -> list[Tensor]:
    """The four rows, the tokens before them included."""
    first, second, third, fourth = tensor.split(LENGTHS)
    return [first, torch.cat((first[:3], second)), third, torch.cat((first[:3], fourth))]


@pytest.mark.parametrize("attend", [attend_shared, _by_gathering])
@pytest.mark.parametrize("unread", [(), (4, 1, 0, 0), (0, 0, 2, 0)])
def test_a_sequence_attends_to_the_tokens_that_it_goes_on_from(
    attend: Any, unread: tuple[int, ...]
) -> None:
    """By torch's kernels for the CPU, and the way that is taken elsewhere."""
    tensors = [x.squeeze(1).double() for x in random_qkv(sum(LENGTHS), 1)]
    together: Any = [x.clone().requires_grad_() for x in tensors]
    alone = [x.clone().requires_grad_() for x in tensors]
    packed = packed_lengths(LENGTHS, torch.device("cpu"), STARTS, SOURCES, unread)
    query, key, value = together
    asking = query if packed.read is None else query[packed.read]
    spans = spans_of(LENGTHS, STARTS, SOURCES, unread)
    found = attend(asking, key, value, spans, None).flatten(1)
    expected = []
    for row, rows in enumerate(zip(*map(whole_rows_of, alone), strict=True)):
        allowed = torch.ones(len(rows[0]), len(rows[0])).tril().bool()
        query, key, value = (x.unsqueeze(1) for x in rows)
        attended = attend_in_words(query, key, value, allowed).squeeze(1)
        expected.append(attended[STARTS[row] + (unread[row] if unread else 0) :])
    torch.testing.assert_close(found, torch.cat(expected))
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    (found * weights).sum().backward()
    (torch.cat(expected) * weights).sum().backward()
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_what_is_kept_does_not_grow_with_the_responses_to_a_prompt() -> None:
    """Of 8 responses of one token to 100: queries, keys, values, results; none of them 8 times."""
    lengths, starts, sources = (101, *[1] * 7), (0, *[100] * 7), (0,) * 8
    query, key, value = (x.squeeze(1).requires_grad_() for x in random_qkv(108, 1))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend_shared(query, key, value, spans_of(lengths, starts, sources), None)
    per_token = (2 * HEADS + 2 * GROUPS) * WIDTH + HEADS
    assert sum(tensor.numel() for tensor in kept) == 108 * per_token


def test_the_keys_of_a_sequence_are_those_before_it_and_its_own() -> None:
    """The sequences ab, c behind ab, def, and g behind d."""
    packed = packed_lengths([2, 1, 3, 1], torch.device("cpu"), (0, 2, 0, 1), (0, 0, 0, 2))
    assert packed.seen.tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 3, 6]
    assert packed.cu_seqlens_q.tolist() == [0, 2, 3, 6, 7]
    assert packed.cu_seqlens_kv.tolist() == [0, 2, 5, 8, 10]
    assert (packed.max_seqlen_q, packed.max_seqlen_kv) == (3, 3)


def test_gathered_keys_give_what_shared_ones_give_and_are_not_kept(
    attention: CoreAttention,
) -> None:
    """Three sequences of five tokens, and of one and three behind those: 5 + 6 + 8 keys."""
    packed = packed_lengths([5, 1, 3], torch.device("cpu"), (0, 5, 5), (0, 0, 0))
    causal = AttnMaskType.causal
    gathering = GatheringAttention(
        attention.rotary, KernelByHand, attention.config, layer_number=1, attn_mask_type=causal
    )
    query, key, value = (x.squeeze(1).requires_grad_() for x in random_qkv(9, 1))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = gathering(query, key, value, None, causal, packed_seq_params=packed)
    expected = attention(query, key, value, None, packed_seq_params=packed)
    torch.testing.assert_close(result, expected)
    assert kept
    assert max(map(len, kept)) == 9


def test_every_layer_gets_its_attention_wrapped_once(attention: CoreAttention) -> None:
    """Megatron may give layers one specification, and models share it."""
    config, rotary = attention.config, attention.rotary
    block = local_block_spec(config, (False, False), rotary.inverse_frequencies, is_last=False)
    assert block.layer_specs is not None
    block.layer_specs[1] = block.layer_specs[0]
    for _ in range(2):
        layers: Any = with_gathered_keys(block, rotary).layer_specs
        for layer in layers:
            parts = layer.submodules.self_attention.submodules
            built = parts.core_attention(config, softmax_scale=0.5, attention_type="self")
            assert isinstance(built, GatheringAttention)
            assert isinstance(built.core_attention, CoreAttention)
            assert (built.rotary, built.core_attention.softmax_scale) == (rotary, 0.5)
            assert parts.linear_qkv is ColumnParallelLinear
