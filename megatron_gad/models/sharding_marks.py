"""Says on every parameter whether tensor-parallel ranks hold parts of it or copies."""

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

CUT_AXIS = {ColumnParallelLinear: 0, VocabParallelEmbedding: 0, RowParallelLinear: 1}


def mark_sharded_weights(chunk: torch.nn.Module) -> None:
    """Set Megatron's attributes on the weights that are cut over tensor-parallel ranks.

    Megatron sets them while it initialises weights, which is left out where weights are loaded.
    Without them the gradient norm counts the first rank's part only, and clipping is wrong.
    """
    for module in chunk.modules():
        axis = CUT_AXIS.get(type(module))
        weight = getattr(module, "weight", None)
        if axis is None or weight is None or hasattr(weight, "tensor_model_parallel"):
            continue
        set_tensor_model_parallel_attributes(weight, True, axis, 1)
