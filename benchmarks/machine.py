"""What a benchmark says about the machine that it ran on, beside its numbers."""

import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch


def describe_machine() -> str:
    """Return the processor, its logical cores, and the version of torch."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = (names or [platform.processor()])[0]
    return f"{name}, {os.cpu_count()} logical cores, torch {torch.__version__}"


def write_measurements(path: Path, sizes: dict[str, dict[str, Any]]) -> None:
    """Write what was measured of each size as JSON, with the date and the machine."""
    about = {"date": str(date.today()), "machine": describe_machine(), "sizes": sizes}
    path.write_text(json.dumps(about, indent=1))
