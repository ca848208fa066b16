"""Seconds of a weight swap into each engine on this CPU, against a plain copy of the same bytes.

    python -m benchmarks.weight_swap [--json FILE] [--sizes small large] [--swaps N]
        [--server-python .venv-sglang/bin/python]

One SGLang server of each size takes the weights by shared memory, by broadcast and from files on
the memory file system; the embedded engine takes them in this process. Every way swaps in turn with
a copy of the same bytes, in rounds, and medians count. bfloat16, checksums off. What a swap costs
beside its bytes shows in the small model.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.cpu_sizes import Size
from benchmarks.machine import describe_machine, write_measurements
from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.engines.base import Engine
from megatron_gad.engines.embedded import EmbeddedEngine
from megatron_gad.engines.sglang.engine import SGLangEngine

SIZES = {
    "small": Size(layers=2, hidden=64, ffn=192, vocab=512, rows=1, tokens=512),
    "large": Size(layers=8, hidden=768, ffn=3072, vocab=16_384, rows=1, tokens=512),
}
COPY = "plain copy"


@dataclass(frozen=True)
class Swaps:
    """Seconds of every swap of one model, by way; the plain copies are a way, too."""

    num_bytes: int
    seconds: dict[str, list[float]]

    def rows(self) -> Iterator[tuple[str, float, float, float]]:
        """Yield way, median seconds, GB/s, and how many plain copies that is."""
        copy = statistics.median(self.seconds[COPY])
        for way, seconds in self.seconds.items():
            median = statistics.median(seconds)
            yield way, median, self.num_bytes / median / 1e9, median / copy


@contextmanager
def engines(folder: Path, python: str) -> Iterator[dict[str, Engine]]:
    """Start a server and yield every way into it, and the embedded engine."""
    dtype, own = torch.bfloat16, SGLangConfig(python=python, verify_interval=0)
    own = replace(own, weight_transport="tensor", server_args={"max_total_tokens": 8192})
    with ExitStack() as stack:

        def opened(config: SGLangConfig) -> SGLangEngine:
            engine = SGLangEngine(config, folder, "cpu", dtype)
            stack.callback(engine.close)
            return engine

        first = opened(own)
        at_url = replace(own, urls=(first.replicas[0].name,), server_args={})
        yield {
            "SGLang, tensor": first,
            "SGLang, broadcast": opened(replace(at_url, weight_transport="broadcast")),
            "SGLang, disk": opened(replace(at_url, weight_transport="disk")),
            "embedded": EmbeddedEngine(folder, "cpu", dtype),
        }


def measure(size: Size, num_swaps: int, python: str) -> Swaps:
    """Swap one model's weights by every way, in rounds; the first round warms up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        size.save(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, dtype=torch.bfloat16
        )
        weights = [(name, tensor.detach()) for name, tensor in model.named_parameters()]
        flat = torch.cat([tensor.flatten() for _, tensor in weights])
        target = torch.empty_like(flat)
        with engines(folder, python) as ways:
            seconds: dict[str, list[float]] = {COPY: [], **{way: [] for way in ways}}
            for number in range(num_swaps + 1):
                timed = {COPY: _seconds(lambda: target.copy_(flat))}
                timed |= {way: _swap(ways[way], weights, number) for way in ways}
                if number:
                    for way, value in timed.items():
                        seconds[way].append(value)
    return Swaps(flat.numel() * flat.element_size(), seconds)


def _swap(engine: Engine, weights: list[tuple[str, Tensor]], version: int) -> float:
    return _seconds(lambda: engine.load_weights(iter(weights), version))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def table(measured: dict[str, Swaps]) -> str:
    """Return the medians as Markdown."""
    lines = ["| weights | way | ms | GB/s | of a plain copy |", "|---|---|---|---|---|"]
    for swaps in measured.values():
        weights = f"{swaps.num_bytes / 1e6:,.1f} MB"
        lines += [
            f"| {weights} | {way} | {1e3 * median:,.1f} | {rate:.2f} | {ratio:,.1f}x |"
            for way, median, rate, ratio in swaps.rows()
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time weight swaps against plain copies.")
    parser.add_argument("--json", type=Path, help="also write every timed swap")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--swaps", type=int, default=7, help="timed swaps by each way")
    parser.add_argument("--server-python", default=".venv-sglang/bin/python")
    options = parser.parse_args()
    measured = {
        name: measure(SIZES[name], options.swaps, options.server_python) for name in options.sizes
    }
    print(f"{date.today()}, {describe_machine()}; medians\n\n{table(measured)}")
    if options.json:
        write_measurements(options.json, {name: vars(swaps) for name, swaps in measured.items()})


if __name__ == "__main__":
    main()
