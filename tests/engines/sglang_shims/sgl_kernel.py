"""Stands in for SGLang's compiled CPU kernels, of which no wheel is published.

Of all of them a server with the torch attention and sampling backends calls one; the others have
to be importable. A call of one of those raises, so that nothing is computed wrongly in silence.
"""

from typing import NoReturn

from torch import Tensor


def assign_req_to_token_pool_cpu(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    pool_len: int,
) -> None:
    """Write where the keys and values of new tokens went into every request's row.

    req_pool_indices, start_offset, end_offset: [B] integers, a row and the columns of each request.
    req_to_token: [rows, pool_len] int32, changed in place.
    out_cache_loc: the places, all requests' in a row.
    """
    assert req_to_token.shape[1] == pool_len, (req_to_token.shape, pool_len)
    first = 0
    spans = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    for row, start, end in spans:
        last = first + end - start
        req_to_token[row, start:end] = out_cache_loc[first:last].to(req_to_token.dtype)
        first = last


def __getattr__(name: str):
    if not name.endswith("_cpu"):
        raise AttributeError(name)

    def refuse(*_arguments: object, **_named: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} has no stand-in on this CPU")

    return refuse
