"""The seeded order in which the rows of a data set are taken; its position can be saved."""

import hashlib
from typing import Any

import torch


class PromptOrder:
    """Gives row numbers of a data set, epoch after epoch, without end.

    The order depends on the seed alone: every rank that takes the same counts gets the same rows,
    and slices its own share out of them. No row comes twice within an epoch; a count that reaches
    over the end of an epoch goes on with the next one's order.
    """

    def __init__(self, num_rows: int, seed: int, shuffle: bool = True) -> None:
        if num_rows < 1:
            raise ValueError(
                f"num_rows = {num_rows} leaves nothing to take; it has to be 1 or more"
            )
        self._num_rows = num_rows
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 0
        self._position = 0  # rows of the epoch already taken
        self._rows = self._epoch_rows()

    @property
    def epoch(self) -> float:
        """Epochs taken so far, with their fraction."""
        return self._epoch + self._position / self._num_rows

    def take(self, count: int) -> list[int]:
        """Return the next ``count`` row numbers, each in [0, num_rows)."""
        taken: list[int] = []
        while len(taken) < count:
            if self._position == self._num_rows:
                self._epoch += 1
                self._position = 0
                self._rows = self._epoch_rows()
            start = self._position
            self._position = min(self._num_rows, start + count - len(taken))
            taken.extend(self._rows[start : self._position])
        return taken

    def state_dict(self) -> dict[str, int]:
        """Return the position, and what the order was made from, as plain integers."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "num_rows": self._num_rows,
            "seed": self._seed,
            "shuffle": int(self._shuffle),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a saved order stood; raises ValueError when it was made otherwise."""
        own = self.state_dict()
        for key in ("num_rows", "seed", "shuffle"):
            if state[key] != own[key]:
                raise ValueError(
                    f"the checkpoint's data order has {key} = {state[key]}, this run has "
                    f"{own[key]}; resume with the same data, caps and seed, or start a new run"
                )
        self._epoch = state["epoch"]
        self._position = state["position"]
        self._rows = self._epoch_rows()

    def _epoch_rows(self) -> list[int]:
        if not self._shuffle:
            return list(range(self._num_rows))
        digest = hashlib.blake2b(f"{self._seed}/{self._epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        rows: Any = torch.randperm(self._num_rows, generator=generator)
        return rows.tolist()
