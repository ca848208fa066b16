"""Processes that have to end."""

import time

import psutil


def wait_until_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those of the processes that still run after some seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return []
        time.sleep(0.2)
    return left
