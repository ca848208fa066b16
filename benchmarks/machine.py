"""What a benchmark says about the machine that it ran on."""

import os
import platform
from pathlib import Path

import torch


def describe_machine() -> str:
    """Return the processor, its logical cores, and the version of torch."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = (names or [platform.processor()])[0]
    return f"{name}, {os.cpu_count()} logical cores, torch {torch.__version__}"
