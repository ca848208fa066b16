"""Models, engine and their buffers take turns on the device, each timed and watched."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from megatron_gad.config.run_control import Role
from megatron_gad.planning.devices import GIB
from megatron_gad.planning.turns import TURNS, Part, TurnName
from megatron_gad.runtime.sampler import Sampler
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import Trainer

# Enters the watch over a turn: (name of the turn, key of its deadline) -> context.
Watch = Callable[[str, str], AbstractContextManager[object]]


def no_watch(turn: str, deadline: str) -> AbstractContextManager[object]:
    """Watch over nothing."""
    return nullcontext()


class Turns:
    """Hands the device to one user after the other: ``with turns("student"): ...``.

    At the beginning of a turn, whoever is not at work leaves first, and then who is comes back, so
    that nothing waits for memory that another still holds. All ranks take the same turns.
    """

    def __init__(
        self,
        leaves: Collection[str],
        sampler: Sampler,
        parallel: Parallel,
        watch: Watch = no_watch,
    ) -> None:
        """leaves: the roles that leave the device when they are not at work."""
        self.leaves = frozenset(leaves)
        self._sampler = sampler
        self._parallel = parallel
        self._watch = watch
        self._trainers: dict[Role, Trainer] = {}
        self._seconds: dict[str, float] = {}
        self._peaks: dict[str, int] = {}
        self._copied_before = 0

    def add(self, role: Role, trainer: Trainer) -> None:
        """Let a trainer take part from the next turn on."""
        self._trainers[role] = trainer

    @contextmanager
    def __call__(self, name: TurnName) -> Iterator[None]:
        """Make room, bring who is at work, and time, watch and measure the block."""
        turn = TURNS[name]
        with self._timed("moves"):
            if not turn.uses_engine:
                self._send_engine_away()
            for role, trainer in self._trainers.items():
                if role in self.leaves and role not in turn.models:
                    trainer.sleep()
                elif turn.models.get(role) != "all":
                    trainer.memory.release_gradients()
            for role, part in turn.models.items():
                if role in self._trainers:
                    self._bring(role, part)
            if turn.uses_engine:
                self._give_room_to_engine()
        if self._parallel.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with self._watch(turn.name, turn.deadline), self._timed(turn.timer):
            yield
        self._peaks[name] = max(self._held(), self._peaks.get(name, 0))

    def save(self, trainer: Trainer) -> AbstractContextManager[None]:
        """Give a trainer its turn to be saved."""
        is_student = self._trainers["student"] is trainer
        return self("save_student" if is_student else "save_discriminator")

    def take_metrics(self) -> dict[str, float]:
        """Return seconds, memory and moves since the last call, and start again from zero.

        ``time/<timer>_s``: of this rank. ``memory/<turn>_gib``, the largest of all ranks: on a GPU
        the most that the process had allocated in a turn; on a CPU what models and embedded engine
        held at its end. ``moves/bytes``: copied between device and host, in either direction.
        """
        copied = sum(trainer.memory.copied_bytes for trainer in self._trainers.values())
        mine = {f"memory/{turn}_gib": peak / GIB for turn, peak in self._peaks.items()}
        mine["moves/bytes"] = float(copied - self._copied_before)
        seconds = {f"time/{timer}_s": each for timer, each in self._seconds.items()}
        self._peaks, self._copied_before, self._seconds = {}, copied, {}
        ranks = self._parallel.gather_over_world(mine)
        return {key: max(rank[key] for rank in ranks) for key in mine} | seconds

    @contextmanager
    def _timed(self, timer: str | None) -> Iterator[None]:
        """Add the block's seconds to a timer. A GPU is waited for at both ends, because its work
        would otherwise count in whichever turn happens to wait for it."""
        self._wait_for_device()
        start = time.monotonic()
        try:
            yield
            self._wait_for_device()
        finally:
            if timer is not None:
                seconds = time.monotonic() - start
                self._seconds[timer] = self._seconds.get(timer, 0.0) + seconds

    def _bring(self, role: Role, part: Part) -> None:
        trainer = self._trainers[role]
        if part == "all":
            trainer.wake()
        elif part == "states":
            trainer.memory.wake_states()
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

    def _held(self) -> int:
        """Return the bytes that the turn had on the device."""
        if self._parallel.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        held = self._sampler.device_bytes()
        return held + sum(t.memory.device_bytes().total for t in self._trainers.values())

    def _wait_for_device(self) -> None:
        if self._parallel.device.type == "cuda":
            torch.cuda.synchronize(self._parallel.device)
