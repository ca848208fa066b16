"""Counts what a rank sends in a block of code, below torch's and Megatron's functions."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# What torch's collectives are called below the functions of torch.distributed, of which some have
# several forms. Of what one rank sends another, the sender's call counts.
KINDS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "broadcast_": "broadcast",
    "alltoall_base_": "all_to_all",
    "alltoall_": "all_to_all",
    "gather_": "gather",
    "scatter_": "scatter",
    "send": "send",
    "recv_": None,
    "barrier": "barrier",
}


class Key(NamedTuple):
    """Calls that count together: their kind, and the ranks that take part."""

    kind: str
    ranks: tuple[int, ...]


class CountedCalls(TorchDispatchMode):
    """Notes every collective of more than one rank: ``with CountedCalls() as counted``.

    calls, num_bytes: of each kind and group; bytes are what this rank gives in, or receives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Key] = Counter()
        self.num_bytes: Counter[Key] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Do what was asked, and note it if it is a collective."""
        namespace, _, name = func._schema.name.partition("::")
        kind = KINDS[name] if namespace == "c10d" else None
        if kind is not None:
            names = [argument.name for argument in func._schema.arguments]
            self._note(kind, dict(zip(names, args, strict=False)) | (kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _note(self, kind: str, given: dict[str, Any]) -> None:
        group = torch.distributed.ProcessGroup.unbox(given["process_group"])
        key = Key(kind, tuple(torch.distributed.get_process_group_ranks(group)))
        if len(key.ranks) == 1:
            return
        if kind in ("broadcast", "all_reduce", "send"):
            given = {"tensors": given["tensors"]}
        if kind == "barrier":
            given = {}
        sent = [value for name, value in given.items() if not name.startswith("output")]
        tensors = [x for x in tree_flatten(sent)[0] if isinstance(x, Tensor)]
        self.calls[key] += 1
        self.num_bytes[key] += sum(x.numel() * x.element_size() for x in tensors)
