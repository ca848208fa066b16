"""What a server's checksums have to be, computed from the weights that were sent to it.

A server fuses and shards tensors: its q, k, v are one parameter, as are gate and up, and a rank
holds a part. The same is done here to the sent tensors before they are hashed. Dense models of the
supported families only; a parameter without a rule below is not compared. Servers on GPUs hash
differently, so they are not compared at all.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

# A server on a host rounds sizes up to a multiple of these, the second per rank, and adds zeros.
VOCABULARY_MULTIPLE = 64
MLP_MULTIPLE = 32


@dataclass(frozen=True)
class HeadCounts:
    """Attention heads of the model."""

    num_heads: int
    num_kv_heads: int


def find_mismatches(
    held_per_rank: Sequence[Mapping[str, str]], sent: Mapping[str, Tensor], heads: HeadCounts
) -> list[str]:
    """Return a message per parameter and rank that a server holds with other values than sent.

    held_per_rank: each tensor-parallel rank's {parameter of the server: checksum}.
    sent: {Hugging Face name: whole tensor}, in the dtype of the server, on the host.
    """
    problems = []
    for rank, held in enumerate(held_per_rank):
        expected = dict(_expected(held, sent, _Shard(rank, len(held_per_rank), heads)))
        problems += [
            f"{name} on engine rank {rank}: checksum {held[name]}, sent {checksum}"
            for name, checksum in expected.items()
            if held[name] != checksum
        ]
        if held and not expected:
            problems.append(f"no parameter of engine rank {rank} is among the tensors sent")
    return problems


@dataclass(frozen=True)
class _Shard:
    """The part of tensors that one tensor-parallel rank of a server holds."""

    rank: int
    size: int
    heads: HeadCounts

    def rows(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self.size, dim=0)[self.rank]

    def columns(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self.size, dim=1)[self.rank]

    def key_value_rows(self, tensor: Tensor) -> Tensor:
        """Fewer heads than ranks are held by several ranks each."""
        parts = min(self.size, self.heads.num_kv_heads)
        return tensor.chunk(parts, dim=0)[self.rank * parts // self.size]

    def vocabulary_rows(self, tensor: Tensor) -> Tensor:
        return self.rows(_padded(tensor, VOCABULARY_MULTIPLE))

    def mlp_rows(self, tensor: Tensor) -> Tensor:
        return self.rows(_padded(tensor, MLP_MULTIPLE * self.size))

    def mlp_columns(self, tensor: Tensor) -> Tensor:
        return self.mlp_rows(tensor.T).T


def _padded(tensor: Tensor, multiple: int) -> Tensor:
    """Add rows of zeros up to a multiple."""
    return pad(tensor, (0, 0, 0, -tensor.shape[0] % multiple))


def _expected(
    held: Mapping[str, str], sent: Mapping[str, Tensor], shard: _Shard
) -> Iterator[tuple[str, str]]:
    for name in held:
        part = _part(name, sent, shard)
        if part is not None:
            yield name, _checksum(part)


def _part(name: str, sent: Mapping[str, Tensor], shard: _Shard) -> Tensor | None:
    """Return what a rank's parameter has to hold, None where there is no rule."""
    if ".qkv_proj." in name:
        q, k, v = (sent.get(name.replace("qkv_proj", p)) for p in ("q_proj", "k_proj", "v_proj"))
        if q is None or k is None or v is None:
            return None
        return torch.cat([shard.rows(q), shard.key_value_rows(k), shard.key_value_rows(v)])
    if ".gate_up_proj." in name:
        gate, up = (sent.get(name.replace("gate_up_proj", p)) for p in ("gate_proj", "up_proj"))
        if gate is None or up is None:
            return None
        return torch.cat([shard.mlp_rows(gate), shard.mlp_rows(up)])
    tensor = sent.get(name)
    if tensor is None:
        return None
    if name.startswith(("model.embed_tokens.", "lm_head.")):
        return shard.vocabulary_rows(tensor)
    if name.endswith("o_proj.weight"):
        return shard.columns(tensor)
    if name.endswith("down_proj.weight"):
        return shard.mlp_columns(tensor)
    return tensor


def _checksum(tensor: Tensor) -> str:
    """Hash as SGLang hashes a tensor on a host: the first 8 bytes of SHA-256, in hexadecimal."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).digest()[:8].hex()
