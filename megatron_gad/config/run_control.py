"""When a run is ended, and who leaves the device while others work."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["student", "discriminator", "engine"]


@dataclass(frozen=True)
class WatchdogConfig:
    """When a run ends that goes nowhere: seconds after which a phase counts as hung; 0: never.

    Attributes:
        start_s: until the first step: data, models, servers, resuming; and making a discriminator.
        rollout_s: sampling; an engine of servers notices sooner when one of them hangs.
        phase_s: each other phase: a weight swap, the turn of a model, saving one model or one
            export, and what lies between, such as waiting for other ranks.
        max_skipped_steps: a step whose loss, scores or gradient norm are not finite is skipped; the
            run ends after this many skipped steps of one model in a row; 0: never.
    """

    start_s: float = 7200.0
    rollout_s: float = 1500.0
    phase_s: float = 1500.0
    max_skipped_steps: int = 3


@dataclass(frozen=True)
class ScheduleConfig:
    """Who leaves the device while others work (docs/planning.md).

    Attributes:
        leaves: who goes to the host, or, an engine, gives its memory back; empty: nobody; None:
            nobody where all fit, else the cheapest that makes it fit.
        device_memory_gib: what a run may use of a device; None: what the device has, less 4 GiB and
            5 %; on a CPU nothing bounds it.
    """

    leaves: tuple[Role, ...] | None = None
    device_memory_gib: float | None = None
