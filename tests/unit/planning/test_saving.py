"""What a save takes of host memory, by numbers that were worked out by hand."""

import pytest

from megatron_gad.planning.layout import Layout
from megatron_gad.planning.saving import check_save, save_copies
from megatron_gad.planning.shapes import shape_from_config

# One layer: 2 x 8 x 8 + 2 x 8 x 4 of attention, biases 8 + 4 + 4, norms 2 x 8, feed-forward
# 3 x 8 x 16, together 608. Embedding and head 10 x 8 each, the last norm 8: 776; a scorer has a
# head of 8: 704.
SHAPE = shape_from_config(
    {
        "model_type": "qwen2",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 10,
        "tie_word_embeddings": False,
    }
)
TWO_RANKS = Layout(data=2, distributed_optimizer=True)
# Weights in 2 bytes, main weights and moments in 12, half of each parameter; the reference in 2.
STUDENT, DISCRIMINATOR, REFERENCE = 388 * 14, 352 * 14, 388 * 2


def test_in_the_background_all_is_kept_and_else_the_largest_part() -> None:
    copies = save_copies(SHAPE, SHAPE, TWO_RANKS, True, has_reference=True, in_background=True)
    assert copies.num_bytes == STUDENT + DISCRIMINATOR + REFERENCE == 11_136
    copies = save_copies(SHAPE, SHAPE, TWO_RANKS, True, has_reference=True, in_background=False)
    assert copies.num_bytes == STUDENT == 5_432


def test_what_a_run_does_not_have_is_not_counted() -> None:
    """In fp32 weights and moments are 12 bytes, and one rank writes all of them."""
    copies = save_copies(SHAPE, None, Layout(), False, has_reference=False, in_background=True)
    assert copies.num_bytes == 776 * 12


@pytest.mark.parametrize(
    ("in_background", "named"),
    [(True, r"checkpoint.async_save = true .* leave it out"), (False, "a save keeps")],
)
def test_a_host_has_to_hold_the_copies_of_its_ranks(in_background: bool, named: str) -> None:
    copies = save_copies(
        SHAPE, SHAPE, TWO_RANKS, True, has_reference=True, in_background=in_background
    )
    check_save(copies, 2, 2 * copies.num_bytes)
    with pytest.raises(ValueError, match=named):
        check_save(copies, 2, 2 * copies.num_bytes - 1)
