"""One GAD step of models with random weights, measured phase by phase on one GPU.

    python -m benchmarks.gpu_step [--json FILE] [--shapes 0.5b 1.5b 7b]
    python -m benchmarks.gpu_step --device cpu --shapes tiny        # the same code, anywhere

Training of student and discriminator, one after the other, in bf16 with Megatron's own layers;
where Transformer Engine is installed with its layers, too, and in FP8 by every recipe that the card
takes; a weight swap into the embedded engine, and sampling from it. The first call of a phase is
not counted; the rest give a median. A model that the planner says does not fit is not built. Lines
are written as they come.
"""

import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro
from transformers import Qwen2Config

from megatron_gad.cpu_seam import install_if_needed

install_if_needed()

# isort: split
from benchmarks.gpu_phases import Case, Options, measure_case
from benchmarks.step_arithmetic import HEADER, SHAPES, Measured, as_record, as_row, device_named
from megatron_gad.checks.compute import RECIPE_CAPABILITY, Machine, check_compute, this_machine
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.files import replace_lines
from megatron_gad.planning.devices import DEVICES, Assumptions, usable_bytes
from megatron_gad.planning.shapes import read_shape
from megatron_gad.training.parallel import Parallel, initialize, shut_down


def check(options: Options) -> None:
    """Raise ValueError where the options cannot be followed here."""
    unknown = [name for name in options.shapes if name not in SHAPES]
    if unknown:
        raise ValueError(f"--shapes {' '.join(unknown)}: not one of {', '.join(SHAPES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "no CUDA device was found; --device cpu --shapes tiny tries the script without one"
        )
    if options.device == "cpu" and torch.cuda.is_available():
        raise ValueError("--device cpu beside a GPU needs CUDA_VISIBLE_DEVICES='' before python")


def precisions(machine: Machine) -> dict[str, ComputeConfig]:
    """Return bf16, and what this machine takes of Transformer Engine: bf16, FP8 by every recipe."""
    plain = ComputeConfig(bf16=True)
    te = replace(plain, transformer_impl="transformer_engine")
    wanted = {"bf16 te": te}
    for recipe in RECIPE_CAPABILITY:
        wanted[f"fp8 {recipe}"] = replace(te, fp8_format="hybrid", fp8_recipe=recipe)
    found = {
        name: compute
        for name, compute in wanted.items()
        if not list(check_compute(compute, machine))
    }
    return {"bf16": plain, **found}


def measure_shape(name: str, options: Options, place: Parallel) -> Iterator[Measured]:
    """Yield all lines of one shape."""
    with tempfile.TemporaryDirectory() as written:
        folder = Path(written)
        Qwen2Config(**SHAPES[name], architectures=["Qwen2ForCausalLM"]).save_pretrained(folder)
        for precision, compute in precisions(this_machine()).items():
            case = Case(
                name,
                precision,
                folder,
                read_shape(folder),
                replace(compute, micro_batch_size=options.micro_batch_size),
                usable=_usable_bytes(place.device),
                samples=precision == "bf16",
            )
            yield from measure_case(case, options, place)


def _usable_bytes(device: torch.device) -> int | None:
    """Return what the planner would use of this GPU; nothing bounds a CPU."""
    if device.type != "cuda":
        return None
    memory = torch.cuda.get_device_properties(device).total_memory
    known = next(iter(DEVICES.values()))
    return usable_bytes(replace(known, memory_bytes=memory), Assumptions())


def run(options: Options) -> Iterator[Measured]:
    """Measure everything in a world of one."""
    place = initialize(ParallelConfig(), seed=0)
    try:
        for name in options.shapes:
            yield from measure_shape(name, options, place)
    finally:
        shut_down()


def describe(options: Options) -> dict[str, Any]:
    """Return date, card and versions."""
    names = ("torch", "megatron-core", "transformers")
    versions = {name: version(name) for name in names}
    versions["transformer-engine"] = this_machine().transformer_engine or "not installed"
    card = torch.cuda.get_device_name() if options.device == "cuda" else "a CPU, to try the script"
    about = {"date": time.strftime("%Y-%m-%d"), "card": card, "python": platform.python_version()}
    return {**about, "versions": versions}


def main(options: Options) -> int:
    """Write date, card and versions, then line by line the table; return the exit status."""
    try:
        check(options)
    except ValueError as error:
        print(f"gpu_step: {error}", file=sys.stderr)
        return 2
    about, device = describe(options), device_named(describe(options)["card"])
    facts = {name: value for name, value in about.items() if name != "versions"}
    facts |= about["versions"]
    print(", ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n")
    print(HEADER, flush=True)
    records = []
    for line in run(options):
        print(as_row(line, device), flush=True)
        records.append(as_record(line, device))
        if options.json is not None:
            replace_lines(options.json, [json.dumps({**about, "lines": records})])
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
