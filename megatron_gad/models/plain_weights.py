"""Parameters that Transformer Engine holds in FP8, as plain tensors while their parts are written.

A part of such a parameter cannot be written: its scales belong to the whole or to blocks of it, and
what cutting gives is a copy. So a whole plain tensor takes its place while the parts are written.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.fp8_utils import dequantize_fp8_tensor, is_float8tensor
from torch import Tensor
from torch.nn import Parameter


def values_of(parameter: Tensor) -> Tensor:
    """Return a parameter without its graph; a plain copy of one in FP8."""
    if is_float8tensor(parameter):
        return dequantize_fp8_tensor(parameter.detach())
    return parameter.detach()


@contextmanager
def plain_weights(
    chunks: list[Any], is_away: Callable[[Tensor], bool] = is_float8tensor
) -> Iterator[dict[Parameter, Tensor]]:
    """Put float32 tensors in place of parameters in FP8; in the end these take their values.

    Gives parameter -> tensor, which stays right after the block. It begins at the parameter's
    values, and takes 4 bytes each.

    Args:
        chunks: Megatron modules.
        is_away: which parameters are replaced.
    """
    places = [
        (module, name, parameter)
        for chunk in chunks
        for module in chunk.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and is_away(parameter)
    ]
    plain = {parameter: values_of(parameter).float().clone() for _, _, parameter in places}
    for module, name, parameter in places:
        module._parameters[name] = Parameter(plain[parameter], requires_grad=False)
    try:
        yield plain
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
    with torch.no_grad():
        for parameter, values in plain.items():
            parameter.copy_(values)
