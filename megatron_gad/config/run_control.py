"""When a run is ended, and who leaves the device while others work."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["student", "discriminator", "engine"]


@dataclass(frozen=True)
class WatchdogConfig:
    """Seconds after which a phase counts as hung and the run ends; 0: never.

    Attributes:
        start_s: until the first step: data, models, servers, resuming; and making a discriminator.
        swap_s: weights from the trainer to the engine.
        rollout_s: sampling; an engine of servers notices sooner when one of them hangs.
        discriminator_s: scoring and training the discriminator.
        student_s: training the student.
        save_s: saving one model of a checkpoint, or one export.
        between_s: what lies between these, such as waiting for other ranks.
    """

    start_s: float = 7200.0
    swap_s: float = 1500.0
    rollout_s: float = 1500.0
    discriminator_s: float = 1500.0
    student_s: float = 1500.0
    save_s: float = 1500.0
    between_s: float = 1500.0


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
