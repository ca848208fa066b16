"""Questions wait while those in flight may use up what is left to spend."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager


class Spent(Exception):
    """What is left does not pay for one more answer. Says how much that may cost."""


class Budget:
    """Reserves what an answer may cost before it is asked for.

    max_cost: of all answers; infinite: nothing waits.
    cost: of the answers so far.
    """

    def __init__(self, max_cost: float, cost: float, largest: float | None = None) -> None:
        """Begin after what was spent before.

        cost: of earlier answers.
        largest: cost of the most expensive of them; None: none is known.
        """
        self.max_cost = max_cost
        self.cost = cost
        self._reserved = 0.0
        self._num_reserved = 0
        self._largest = largest
        self._changed = asyncio.Condition()

    def spend(self, cost: float) -> None:
        """Count what an answer has cost."""
        self.cost += cost
        self._largest = max(self._largest or 0.0, cost)

    @asynccontextmanager
    async def reserving(
        self, most: float | None, is_over: Callable[[], bool]
    ) -> AsyncGenerator[None]:
        """Wait until an answer can be paid for, and reserve its cost for the length of the block.

        most: what it may cost; None: nothing bounds it, and the largest so far has to do. Before
            there is one, answers are asked for one at a time.
        is_over: whether nothing is to be asked any more, so that nobody waits.

        Raises:
            Spent: it cannot be paid for, or the asking is over.
        """
        if not math.isfinite(self.max_cost):
            yield
            return
        async with self._changed:
            while not self._can_pay(most):
                if is_over() or self._num_reserved == 0:
                    raise Spent(f"{self._expected(most):.4f}")
                await self._changed.wait()
            reserved = self._expected(most)
            self._reserved += reserved
            self._num_reserved += 1
        try:
            yield
        finally:
            async with self._changed:
                self._reserved -= reserved
                self._num_reserved -= 1
                self._changed.notify_all()

    def _expected(self, most: float | None) -> float:
        return most if most is not None else self._largest or 0.0

    def _can_pay(self, most: float | None) -> bool:
        is_guess = most is None and self._largest is None
        if is_guess and self._num_reserved > 0:
            return False
        # Sums of floats that come to the limit itself are within it.
        total = self.cost + self._reserved + self._expected(most)
        return total <= self.max_cost * (1 + 1e-9)
