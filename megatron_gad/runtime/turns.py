"""Who is on the device in which phase of a step: models, engine and their buffers take turns.

A phase is entered before its work begins. First whoever is not at work leaves, then who is comes
back, so that nothing waits for memory that another still holds. What is used unasked, as for a
checkpoint, brings itself back.
"""

from collections.abc import Collection
from typing import Literal

import torch

from megatron_gad.planning.choice import Role
from megatron_gad.planning.devices import GIB
from megatron_gad.runtime.metrics import Timers
from megatron_gad.runtime.sampler import Sampler
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import Trainer

Phase = Literal["rollout", "score", "discriminator", "reference", "student", "save"]
Part = Literal["weights", "all"]

# What of the models is at work. A weight swap and the comparison with the engine belong to the
# rollout; the reference borrows the student's buffers, which need not hold anything before.
AT_WORK: dict[Phase, dict[Role, Part]] = {
    "rollout": {"student": "weights"},
    "score": {"discriminator": "weights"},
    "discriminator": {"discriminator": "all"},
    "reference": {},
    "student": {"student": "all"},
    "save": {},
}


class Schedule:
    """Moves models and engine between the phases of a step, and counts what that takes."""

    def __init__(
        self, leaves: Collection[str], sampler: Sampler, parallel: Parallel, timers: Timers
    ) -> None:
        """Leaves: the roles that leave the device when they are not at work."""
        self.leaves = frozenset(leaves)
        self._sampler = sampler
        self._parallel = parallel
        self._timers = timers
        self._trainers: dict[Role, Trainer] = {}
        self._phase: Phase | None = None
        self._peaks: dict[Phase, int] = {}
        self._copied_before = 0

    def add(self, role: Role, trainer: Trainer) -> None:
        """Let a trainer take part from the next phase on."""
        self._trainers[role] = trainer

    def enter(self, phase: Phase) -> None:
        """Make room for a phase and bring what works in it. All ranks enter the same ones."""
        self._measure()
        with self._timers("moves"):
            if phase != "rollout":
                self._send_engine_away()
            needed = AT_WORK[phase]
            for role, trainer in self._trainers.items():
                if role in self.leaves and role not in needed:
                    trainer.sleep()
                elif needed.get(role) != "all":
                    trainer.memory.release_gradients()
            for role, part in needed.items():
                if role in self._trainers:
                    self._bring(role, part)
            if phase == "rollout":
                self._give_room_to_engine()
        self._phase = phase
        if self._parallel.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def take(self) -> dict[str, float]:
        """Return memory and moves since the last call, the largest of all ranks.

        ``memory/<phase>_gib``: on a GPU the most that this process had allocated in a phase; on a
        CPU what models and embedded engine held at its end. ``moves/bytes``: copied between device
        and host, in either direction.
        """
        self._measure()
        self._phase = None
        copied = sum(trainer.memory.copied_bytes for trainer in self._trainers.values())
        mine = {f"memory/{phase}_gib": peak / GIB for phase, peak in self._peaks.items()}
        mine["moves/bytes"] = float(copied - self._copied_before)
        self._peaks, self._copied_before = {}, copied
        ranks = self._parallel.gather_over_world(mine)
        return {key: max(rank[key] for rank in ranks) for key in mine}

    def _bring(self, role: Role, part: Part) -> None:
        trainer = self._trainers[role]
        if part == "all":
            trainer.wake()
        elif role in self.leaves:
            trainer.sleep(keep_weights=True)

    def _send_engine_away(self) -> None:
        if "engine" in self.leaves:
            self._sampler.sleep()
            # The engine may span the devices of ranks that do not call it.
            self._parallel.barrier()

    def _give_room_to_engine(self) -> None:
        if self._parallel.device.type == "cuda":
            torch.cuda.empty_cache()  # servers are other processes
        if self._parallel.device.type == "cuda" or "engine" in self.leaves:
            self._parallel.barrier()

    def _measure(self) -> None:
        """Note what the phase that ends had on the device."""
        if self._phase is None:
            return
        if self._parallel.device.type == "cuda":
            held = torch.cuda.max_memory_allocated()
        else:
            held = self._sampler.device_bytes()
            held += sum(t.memory.device_bytes().total for t in self._trainers.values())
        self._peaks[self._phase] = max(held, self._peaks.get(self._phase, 0))
