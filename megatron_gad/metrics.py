"""Collect, reduce and write the numbers of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LogConfig:
    """What a run writes down.

    log_interval: steps between log lines.
    samples_interval: steps between files of samples; 0: none.
    tensorboard: write event files.
    wandb_project: also log to Weights & Biases; empty: no.
    """

    log_interval: int = 1
    samples_interval: int = 10
    tensorboard: bool = True
    wandb_project: str = ""
