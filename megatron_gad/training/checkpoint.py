"""Save and restore a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a run lives and what it keeps.

    save: the run directory; everything the run writes is in it.
    load: run directory to resume from; empty resumes from ``save`` if it holds a checkpoint.
    save_interval: steps between checkpoints; 0: only at the end of each stage.
    keep_last: older checkpoints than this many are deleted; 0 keeps all.
    """

    save: str = "runs/run"
    load: str = ""
    save_interval: int = 50
    keep_last: int = 2
