"""What the discriminator makes of every token of the responses that are shown."""

from collections.abc import Sequence

from megatron_gad.data.balance import scored_ids
from megatron_gad.data.batching import pair_batch
from megatron_gad.data.chat import ChatCodec
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Group

# (the text of a token, its value); the text of an end token is None.
Tokens = list[tuple[str | None, float]]
# Significant digits of a value: what float32 knows.
DIGITS = 7


def read_tokens(
    discriminator: Trainer, codec: ChatCodec, groups: Sequence[Group], is_shown: Sequence[bool]
) -> dict[int, list[Tokens]]:
    """Return of every shown group the tokens of the teacher's response, and of each rollout.

    All ranks of the discriminator call it, also those that have nothing to show. The result is by
    the row of the data, and the same on all of them.

    codec: of what the discriminator reads. groups: this data rank's, at least one; is_shown: of
    each.
    """
    shown = [group for group, is_one in zip(groups, is_shown, strict=True) if is_one]
    pairs = pair_batch(shown or groups[:1])
    values_RT = discriminator.token_values(pairs)
    values = [row[mask].tolist() for row, mask in zip(values_RT, pairs.response_mask, strict=True)]
    size = 1 + pairs.group_size
    own: dict[int, list[Tokens]] = {}
    for place, group in enumerate(shown):
        _, *responses = scored_ids(group)
        of_group = values[place * size : (place + 1) * size]
        own[group.prompt.index] = [
            [*zip(codec.token_texts(ids), map(_rounded, found), strict=True)]
            for ids, found in zip(responses, of_group, strict=True)
        ]
    shares = discriminator.parallel.gather_over_data(own)
    return {row: tokens for share in shares for row, tokens in share.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
