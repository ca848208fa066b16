"""The keys and values of all tokens so far, in buffers that grow by blocks and shrink by rows."""

import inspect
from functools import cache

import torch
from torch import Tensor, nn

BLOCK_COLUMNS = 256


class DecodingCache:
    """What the attention layers of a transformers model write and read, one new token at a time.

    Every row's next token goes to the same column, because prompts end in the same column: a step
    writes one column and reads views. transformers' own caches copy everything at every step, or
    read the columns of the whole length cap.

    keys, values: one [B, heads, columns, head_dim] per layer, of which ``length`` columns count.
    """

    # This, get_query_offset and get_mask_sizes are what transformers asks when a mask is left out.
    is_compileable = False

    def __init__(self, num_rows: int, length: int, room: int) -> None:
        """Start without layers; ``write_prompts`` brings them.

        num_rows: B.
        length: columns of the longest prompt.
        room: columns to set aside for new tokens; more are added when they run out.
        """
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.length = length
        self._num_rows = num_rows
        self._columns = length + room

    def write_prompts(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write the prompts of some rows so that they end in the last column that counts.

        rows: [R] int64. keys, values: [R, heads, prompt columns, head_dim]. The columns before a
        prompt stay 0: attention masks them, but multiplies them by their weight of 0.
        """
        if layer == len(self.keys):
            shape = (self._num_rows, keys.shape[1], self._columns, keys.shape[3])
            self.keys.append(keys.new_zeros(shape))
            self.values.append(values.new_zeros(shape))
        columns = slice(self.length - keys.shape[2], self.length)
        self.keys[layer][:, :, columns].index_copy_(0, rows, keys)
        self.values[layer][:, :, columns].index_copy_(0, rows, values)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write the next column of a layer; return all its keys and values, the new included.

        key_states, value_states: [B, heads, 1, head_dim].
        """
        end = self.length + 1
        if end > self.keys[layer_idx].shape[2]:
            self.keys[layer_idx] = _with_another_block(self.keys[layer_idx])
            self.values[layer_idx] = _with_another_block(self.values[layer_idx])
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[:, :, self.length : end] = key_states
        values[:, :, self.length : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def keep_rows(self, rows: Tensor) -> None:
        """Keep only some rows, in the order given; one layer at a time, for the memory's sake.

        rows: [kept] int64.
        """
        for layer in range(len(self.keys)):
            self.keys[layer] = self.keys[layer][rows]
            self.values[layer] = self.values[layer][rows]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the column of the next token."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return how many columns the next attention reads, and the first of them."""
        return self.length + query_length, 0


@cache
def cache_argument(model_class: type[nn.Module]) -> str:
    """Return the name of the argument through which a model's forward pass takes its cache.

    Older releases of transformers 5 say ``past_key_values``, newer ones ``cache``. A release that
    says ``cache`` takes the other name with a warning, before 5.40.
    """
    is_new = "cache" in inspect.signature(model_class.forward).parameters
    return "cache" if is_new else "past_key_values"


def _with_another_block(buffer: Tensor) -> Tensor:
    block = buffer.new_empty((*buffer.shape[:2], BLOCK_COLUMNS, buffer.shape[3]))
    return torch.cat((buffer, block), dim=2)
