"""What a server's checksums have to be, computed from the weights that were sent to it.

A server fuses and shards tensors: its q, k, v are one parameter, as are gate and up, and a rank
holds a part. The same is done here to the sent tensors before they are hashed. A parameter without
a rule below is not compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from megatron_gad.engines.sglang.tensor_hash import checksum

# A server rounds the vocabulary up to a multiple of this, and adds zeros.
VOCABULARY_MULTIPLE = 64
# A server on a host does so, too, with the part of an inner width that a rank has.
MLP_MULTIPLE = 32


@dataclass(frozen=True)
class HeadCounts:
    """Attention heads of the model."""

    num_heads: int
    num_kv_heads: int


def find_mismatches(
    held_per_rank: Sequence[Mapping[str, str]],
    sent: Mapping[str, Tensor],
    heads: HeadCounts,
    device: torch.device,
) -> list[str]:
    """Return a message per parameter and rank that a server holds with other values than sent.

    held_per_rank: each tensor-parallel rank's {parameter of the server: checksum}.
    sent: {Hugging Face name: whole tensor}, in the dtype of the server.
    device: of the server's type.
    """
    problems = []
    for rank, held in enumerate(held_per_rank):
        expected = dict(_expected(held, sent, _Shard(rank, len(held_per_rank), heads, device)))
        problems += [
            f"{name} on engine rank {rank}: checksum {held[name]}, sent {wanted}"
            for name, wanted in expected.items()
            if held[name] != wanted
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
    device: torch.device

    def rows(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self.size, dim=0)[self.rank]

    def columns(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self.size, dim=1)[self.rank]

    def key_value_rows(self, tensor: Tensor) -> Tensor:
        """Fewer heads than ranks are held by several ranks each."""
        parts = min(self.size, self.heads.num_kv_heads)
        return tensor.chunk(parts, dim=0)[self.rank * parts // self.size]

    def vocabulary_rows(self, tensor: Tensor) -> Tensor:
        padded = _padded(tensor, VOCABULARY_MULTIPLE)
        if len(padded) % self.size:
            padded = _padded(tensor, VOCABULARY_MULTIPLE * self.size)
        return self.rows(padded)

    def mlp_rows(self, tensor: Tensor) -> Tensor:
        is_host = self.device.type == "cpu"
        return self.rows(_padded(tensor, MLP_MULTIPLE * self.size) if is_host else tensor)

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
            yield name, checksum(part, shard.device)


def _part(name: str, sent: Mapping[str, Tensor], shard: _Shard) -> Tensor | None:
    """Return what a rank's parameter has to hold, None where there is no rule."""
    if ".qkv_proj." in name:
        q, k, v = (sent.get(name.replace("qkv_proj", p)) for p in ("q_proj", "k_proj", "v_proj"))
        if q is None or k is None or v is None:
            return None
        return torch.cat([shard.rows(q), shard.key_value_rows(k), shard.key_value_rows(v)])
    if ".experts.w" in name:
        return _experts(name, sent, shard)
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


# What the gate, up and down projections of an expert are called, by family.
EXPERT_MATRICES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


def _experts(name: str, sent: Mapping[str, Tensor], shard: _Shard) -> Tensor | None:
    """Return a rank's part of all experts of a layer, which a server holds in two tensors.

    [experts, 2 x width, hidden], gates above, and [experts, hidden, width]. On a GPU it depends on
    the chosen kernel how they are ordered, so they have no rule there.
    """
    if shard.device.type != "cpu":
        return None
    prefix, fused = name.rsplit(".", 1)
    for names in EXPERT_MATRICES:
        gates, ups, downs = (_of_all_experts(prefix, matrix, sent) for matrix in names)
        if gates and fused == "w13_weight":
            pairs = zip(gates, ups, strict=True)
            return torch.stack([torch.cat([shard.mlp_rows(w) for w in pair]) for pair in pairs])
        if downs and fused == "w2_weight":
            return torch.stack([shard.mlp_columns(down) for down in downs])
    return None


def _of_all_experts(prefix: str, matrix: str, sent: Mapping[str, Tensor]) -> list[Tensor]:
    found = []
    while f"{prefix}.{len(found)}.{matrix}.weight" in sent:
        found.append(sent[f"{prefix}.{len(found)}.{matrix}.weight"])
    return found
