"""The seeded order in which the rows of a data set are taken; its position can be saved."""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch

State = dict[str, Any]


class PromptOrder:
    """Gives row numbers of a data set, epoch after epoch, without end.

    The order depends on the seed and on the counts that are taken: every rank that takes the same
    counts gets the same rows, and slices its own share out of them. A count that reaches over the
    end of an epoch goes on with the next one's order. What it has already is put off there: the
    next call begins with it. So no row comes twice in one call, and each comes once in an epoch.
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
        self._position = 0  # rows of the epoch already passed: taken or put off
        self._put_off: list[int] = []
        self._rows = self._epoch_rows()

    @property
    def epoch(self) -> float:
        """Epochs taken so far, with their fraction."""
        return self._epoch + (self._position - len(self._put_off)) / self._num_rows

    def take(self, count: int, besides: Collection[int] = ()) -> list[int]:
        """Return the next ``count`` row numbers, each in [0, num_rows), no row twice.

        Only a count beyond num_rows repeats rows, once it has all of them.

        besides: rows that are put off, too; with the count no more than num_rows.
        """
        taken: list[int] = []
        while len(taken) < count:
            taken += self._take_once(min(count - len(taken), self._num_rows), besides)
        return taken

    def _take_once(self, count: int, besides: Collection[int]) -> list[int]:
        barred = set(besides)
        assert count + len(barred) <= self._num_rows, (count, len(barred), self._num_rows)
        taken: list[int] = []
        put_off: list[int] = []
        while len(taken) < count:
            row = self._put_off.pop(0) if self._put_off else self._next_row()
            (put_off if row in barred else taken).append(row)
            barred.add(row)
        self._put_off = put_off + self._put_off
        return taken

    def _next_row(self) -> int:
        if self._position == self._num_rows:
            self._epoch += 1
            self._position = 0
            self._rows = self._epoch_rows()
        self._position += 1
        return self._rows[self._position - 1]

    def state_dict(self) -> State:
        """Return the position, and what the order was made from, as plain values.

        position: rows of the epoch already taken. put_off: rows that come next, not counted there.
        """
        return {
            "epoch": self._epoch,
            "position": self._position - len(self._put_off),
            "put_off": list(self._put_off),
            "num_rows": self._num_rows,
            "seed": self._seed,
            "shuffle": int(self._shuffle),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a saved order stood; raises ValueError when it was made otherwise."""
        own = self.state_dict()
        for key in ("num_rows", "seed", "shuffle"):
            if state[key] != own[key]:
                raise ValueError(
                    f"the checkpoint's data order has {key} = {state[key]}, this run has "
                    f"{own[key]}; resume with the same data, caps and seed, or start a new run"
                )
        self._epoch = state["epoch"]
        self._put_off = list(state.get("put_off", ()))  # older checkpoints put nothing off
        self._position = state["position"] + len(self._put_off)
        self._rows = self._epoch_rows()

    def _epoch_rows(self) -> list[int]:
        if not self._shuffle:
            return list(range(self._num_rows))
        digest = hashlib.blake2b(f"{self._seed}/{self._epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        rows: Any = torch.randperm(self._num_rows, generator=generator)
        return rows.tolist()
