"""What a process is told through its environment, readable before any group exists."""

import os
from pathlib import Path

# The key that SGLang servers at URLs ask for.
SERVER_KEY = "SGLANG_API_KEY"
# The key of a judge, and of other endpoints that are asked.
ENDPOINT_KEY = "OPENAI_API_KEY"


def environment_variable(name: str) -> str:
    """Return what a user set, empty if nothing."""
    return os.environ.get(name, "")


def secret(name: str) -> str:
    """Return a key from the variable of this name, or from the file that <name>_FILE names.

    Empty if there is neither. Raises ValueError, without the key, if it cannot be used.
    """
    place, key = name, environment_variable(name)
    file = environment_variable(f"{name}_FILE")
    if not key and file:
        place = f"the file {file} ({name}_FILE)"
        try:
            key = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{place} cannot be read: {type(error).__name__}") from None
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{place} holds no key: give one line of printable ASCII characters")
    return key


def environment_rank() -> int:
    """Return this process's rank as the launcher gave it."""
    return int(os.environ.get("RANK", "0"))


def environment_world_size() -> int:
    """Return the number of processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its node; it picks the device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Return the number of processes on this process's node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def master_address() -> str:
    """Return the address of the host of rank 0."""
    return os.environ.get("MASTER_ADDR", "127.0.0.1")


def is_started_by_torchrun() -> bool:
    """Return whether this process is a child of torchrun."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launched_without_torchrun() -> bool:
    """Return whether Slurm started several tasks of which none knows of the others."""
    num_tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    return num_tasks not in ("", "1") and "RANK" not in os.environ
