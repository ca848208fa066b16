"""The checksums that SGLang takes of a tensor: one way in host memory, another on a GPU."""

import hashlib

import torch
from torch import Tensor
from torch.nn.functional import pad

WORD, LONG = 0xFFFFFFFF, (1 << 64) - 1
# Words that are hashed together on a GPU.
TILE_WORDS = 8192
# Bounds the memory here: about ten numbers of 8 bytes are alive for each word of 4.
TILES_AT_ONCE = 128
# SGLang's seed, which it does not let a caller choose, and what becomes of it for the second half.
SEED = 0x243F6A88
SECOND_SEED = ((SEED * 0x9E3779B1) ^ 0xDEADBEEF) & WORD


def checksum(tensor: Tensor, device: torch.device) -> str:
    """Return the checksum of a tensor that a server holds on this type of device.

    The tensor may be anywhere; for a GPU's it is moved there, because there is much to compute.
    """
    if device.type == "cpu":
        return _host_checksum(tensor)
    return device_checksum(tensor.to(device))


def _host_checksum(tensor: Tensor) -> str:
    """The first 8 bytes of SHA-256, in hexadecimal."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).digest()[:8].hex()


def device_checksum(tensor: Tensor) -> str:
    """Two 32-bit murmur hashes of every tile of words, added up over tiles, then SplitMix64.

    Computed where the tensor is, in 64-bit integers of which the lower half counts.
    """
    raw = tensor.contiguous().view(-1).view(torch.uint8)
    words = pad(raw, (0, -raw.numel() % 4)).view(torch.int32)
    size = TILES_AT_ONCE * TILE_WORDS
    starts = range(0, len(words), size)
    total = sum(_tiles(words[start : start + size], start, len(words)) for start in starts)
    return f"{_split_mix(total & LONG):016x}"


def _tiles(words: Tensor, start: int, num_words: int) -> int:
    """Return the sum of the hashes of some tiles; start: of their first word in the tensor."""
    values = words.long() & WORD
    places = torch.arange(start, start + len(values), device=words.device) & WORD
    halves = []
    for seed, factor, turn in ((SEED, 0x27D4EB2D, 15), (SECOND_SEED, 0x165667B1, 13)):
        turned = ((places << turn) | (places >> (32 - turn))) & WORD
        mixed = _murmur(values ^ ((_times(places, factor) + seed) & WORD) ^ turned)
        sums = pad(mixed, (0, -len(mixed) % TILE_WORDS)).view(-1, TILE_WORDS).sum(dim=1) & WORD
        halves.append(_murmur(sums ^ (num_words * 4 & WORD)).tolist())
    return sum((high << 32) | low for high, low in zip(*halves, strict=True))


def _murmur(words: Tensor) -> Tensor:
    """The last step of a 32-bit MurmurHash3."""
    words = _times(words ^ (words >> 16), 0x85EBCA6B)
    words = _times(words ^ (words >> 13), 0xC2B2AE35)
    return words ^ (words >> 16)


def _times(words: Tensor, factor: int) -> Tensor:
    """The lower 32 bits of a product, without leaving 63."""
    upper = (words * (factor >> 16)) & 0xFFFF
    return (words * (factor & 0xFFFF) + (upper << 16)) & WORD


def _split_mix(number: int) -> int:
    """The last step of SplitMix64."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & LONG
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & LONG
    return number ^ (number >> 31)
