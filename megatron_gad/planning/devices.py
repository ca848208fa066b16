"""What the planner knows about GPU types: published figures, and what share of them is reached."""

import re
from dataclasses import dataclass

from megatron_gad.config.layout import HOST_GPUS

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True)
class Device:
    """One GPU in a node of eight, and its share of the node's network.

    memory_bytes: what nvidia-smi reports as its total.
    bf16_flops, fp8_flops: dense peaks per second; 0 where the type has no such arithmetic.
    hbm_bandwidth: bytes per second.
    link_bandwidth, host_bandwidth, network_bandwidth: bytes per second in one direction, over
        NVLink, over PCIe to the host, and to other nodes.
    """

    name: str
    memory_bytes: int
    bf16_flops: float
    fp8_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    host_bandwidth: float
    network_bandwidth: float
    gpus_per_node: int = HOST_GPUS


# NVIDIA's data sheets of the SXM parts, which give NVLink and PCIe in both directions together and
# peaks with sparsity (except A100's): halved here. The network is that of the DGX of the type, one
# adapter of 200 (A100) or 400 Gbit/s a GPU.
DEVICES = {
    device.name: device
    for device in (
        Device("a100-80g", 81_920 * MIB, 312e12, 0.0, 2.039e12, 300e9, 32e9, 25e9),
        Device("h100-80g", 81_559 * MIB, 989.4e12, 1_978.9e12, 3.35e12, 450e9, 64e9, 50e9),
        Device("h200-141g", 143_771 * MIB, 989.4e12, 1_978.9e12, 4.8e12, 450e9, 64e9, 50e9),
        Device("b200-192g", 183_359 * MIB, 2_250e12, 4_500e12, 8.0e12, 900e9, 64e9, 50e9),
    )
}


@dataclass(frozen=True)
class Assumptions:
    """What no data sheet says. Every one is a flag.

    Attributes:
        mfu: share of the dense bf16 peak that a forward or backward pass reaches.
        fp8_mfu: share of the FP8 peak that a forward or backward pass reaches.
        padding: tokens computed for each token that is real; 1.0 when rows are equally long.
        hbm_efficiency: share of the published memory bandwidth that decoding reaches.
        link_efficiency: share of the NVLink or network bandwidth that collectives reach.
        host_efficiency: share of the PCIe bandwidth that copies from and to pinned memory reach.
        decode_seconds: fixed seconds of one decoding iteration, beside reading and computing.
        decode_layer_seconds: further seconds for each layer if the engine is tensor parallel.
        tail_share: share of the samples that run to the cap after the others have ended.
        bucket_bytes: bytes of one bucket of a weight swap.
        bucket_seconds: fixed seconds of a bucket, whatever its bytes.
        swap_seconds: fixed seconds of a swap.
        engine_seconds: seconds a step to release and resume the engine's cache and weights.
        reserved_bytes: bytes of device memory that no role gets: contexts of two processes, the
            engine's CUDA graphs, buffers.
        reserved_share: share of device memory that fragmentation takes.
    """

    mfu: float = 0.40
    fp8_mfu: float = 0.28
    padding: float = 1.0
    hbm_efficiency: float = 0.75
    link_efficiency: float = 0.8
    host_efficiency: float = 0.4
    decode_seconds: float = 0.001
    decode_layer_seconds: float = 30e-6
    tail_share: float = 0.05
    bucket_bytes: int = 512 * MIB
    bucket_seconds: float = 0.02
    swap_seconds: float = 0.5
    engine_seconds: float = 3.0
    reserved_bytes: int = 4 * GIB
    reserved_share: float = 0.05

    def problems(self) -> list[str]:
        """Return what is out of range, with what is allowed."""
        shares = (
            *("mfu", "fp8_mfu", "hbm_efficiency", "link_efficiency", "host_efficiency"),
            "tail_share",
        )
        found = [
            f"assume.{name} = {getattr(self, name)}; it has to be above 0 and at most 1"
            for name in shares
            if not 0 < getattr(self, name) <= 1
        ]
        if self.padding < 1:
            found.append(f"assume.padding = {self.padding}; it has to be 1 or more")
        if self.bucket_bytes < 1:
            found.append(f"assume.bucket_bytes = {self.bucket_bytes}; it has to be 1 or more")
        if not 0 <= self.reserved_share < 1:
            found.append(
                f"assume.reserved_share = {self.reserved_share}; it has to be 0 or more, below 1"
            )
        return found


def device_of(name: str) -> Device:
    """Return a row of the table, by its name or the part before the memory: "h100".

    Raises:
        ValueError: no such type; lists those that are known.
    """
    asked = name.lower()
    for known, device in DEVICES.items():
        if asked in (known, known.split("-")[0]):
            return device
    raise ValueError(f"--gpu-type {name!r} is not known; use one of {', '.join(DEVICES)}")


def device_named(name: str) -> Device | None:
    """Return the row of a GPU by the name that its driver gives; None where its speed is not known.

    The table is of whole SXM parts: those for PCIe, NVL pairs and slices of a GPU are slower.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if words & {"pcie", "nvl", "mig"}:
        return None
    found = (device for device in DEVICES.values() if device.name.split("-")[0] in words)
    return next(found, None)


def usable_bytes(device: Device, assume: Assumptions) -> int:
    """Return the device memory that the roles of a run can share."""
    reserved = assume.reserved_bytes + int(assume.reserved_share * device.memory_bytes)
    return max(0, device.memory_bytes - reserved)
