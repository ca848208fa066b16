"""When a run is ended, and who leaves the device while others work."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

Role = Literal["student", "discriminator", "engine"]
# A collective waits so much longer than a phase may take, so that the watchdog speaks first.
LATER = timedelta(minutes=5)
FOR_EVER = timedelta(days=365)


@dataclass(frozen=True)
class WatchdogConfig:
    """When a run ends that goes nowhere: seconds after which a phase counts as hung; 0: never.

    Attributes:
        start_s: seconds until the first step: loading data and models, starting servers, resuming;
            also for making a discriminator.
        phase_s: seconds for any other phase: sampling, a weight swap, the turn of a model, saving
            or exporting one model, or waiting for other ranks in between. A collective fails five
            minutes later. An engine of servers notices a hung server sooner.
        max_skipped_steps: skipped steps of one model in a row after which the run ends; 0: never. A
            step is skipped if its loss, scores or gradient norm are not finite.
    """

    start_s: float = 7200.0
    phase_s: float = 1500.0
    max_skipped_steps: int = 3

    @property
    def collective_timeout(self) -> timedelta:
        """Time after which a collective that still waits ends its rank."""
        return timedelta(seconds=self.phase_s) + LATER if self.phase_s else FOR_EVER


@dataclass(frozen=True)
class ScheduleConfig:
    """Who leaves the device while others work (docs/planning.md).

    Attributes:
        leaves: models that move to the host, and the engine that gives its memory back, while
            others work. Empty: nobody. Default: nobody if all fit, else the cheapest choice that
            fits.
        device_memory_gib: memory of a device that the run may use. Default: all of it less 4 GiB
            and 5 %; no bound on a CPU.
    """

    leaves: tuple[Role, ...] | None = None
    device_memory_gib: float | None = None
