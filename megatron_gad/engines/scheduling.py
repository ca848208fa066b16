"""Which responses are decoded at a time: as many as the pool of keys and values has room for."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from megatron_gad.config.rollout import EMBEDDED_ROWS
from megatron_gad.engines.base import EngineWork
from megatron_gad.engines.kv_cache import BLOCK_TOKENS, BlockPool, Region, num_blocks
from megatron_gad.engines.prefill import Text
from megatron_gad.engines.sampling import uniform_draws

# Rows join when there is room for this share of the live ones, since several prompts are read
# faster together.
JOINING_SHARE = 1 / 16


@dataclass(frozen=True)
class Request:
    """One response to sample: the prompt's token ids, and the seed of every draw."""

    prompt_ids: tuple[int, ...]
    seed: int


@dataclass(eq=False)
class SharedPrompt:
    """A prompt, which is read once for all its responses.

    is_held: its keys and values are in the pool. num_live, num_waiting: responses.
    logits: [V], those of every first token; only while some responses have yet to begin.
    """

    number: int
    ids: tuple[int, ...]
    is_held: bool = False
    num_live: int = 0
    num_waiting: int = 0
    logits: Tensor | None = None


@dataclass(eq=False)
class Row:
    """A response on its way. The last of its ids has no keys and values yet.

    uniforms: [max_new_tokens] float64, the draws of its tokens, once it has begun.
    block: of the pool, where the keys and values of its last id go.
    """

    number: int
    prompt: SharedPrompt
    seed: int
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    uniforms: np.ndarray = field(default_factory=lambda: np.empty(0))
    block: int = 0

    @property
    def offset(self) -> int:
        """The place of its last id in its block."""
        return (len(self.ids) - 1) % BLOCK_TOKENS


@dataclass(frozen=True)
class Joined:
    """Rows that have just joined, and what has to be read for them.

    prompts: their texts; their logits are those of the first token of all their rows.
    resumed: the texts of rows that had begun before.
    """

    rows: list[Row]
    prompts: dict[SharedPrompt, Text]
    resumed: dict[Row, Text]


class Schedule:
    """Rows that wait and rows that are live, and the blocks of the latter.

    Rows join as soon as there is room for as many tokens as responses had so far. If it runs out
    all the same, the youngest wait again; what they have is kept, and read again later.
    """

    def __init__(self, requests: Sequence[Request], pool: BlockPool, max_new_tokens: int) -> None:
        self.live: list[Row] = []
        self.ended: list[Row] = []
        self.num_requests = len(requests)
        self.work = EngineWork()
        self._pool = pool
        self._max_new_tokens = max_new_tokens
        self.prompt_region = Region(pool, is_at_end=True)
        self.response_region = Region(pool)
        self._is_short = False  # of room: no row joins before one has ended
        shared: dict[tuple[int, ...], SharedPrompt] = {}
        for request in requests:
            ids = request.prompt_ids
            shared.setdefault(ids, SharedPrompt(len(shared), ids)).num_waiting += 1
        self.prompts = list(shared.values())
        rows = [Row(i, shared[r.prompt_ids], r.seed) for i, r in enumerate(requests)]
        # Prompts of like length are read together, and the responses of each begin together.
        rows.sort(key=lambda row: (len(row.prompt.ids), row.prompt.number))
        self.waiting = deque(rows)

    def join(self) -> Joined:
        """Let rows that wait join as far as there is room."""
        joined = Joined([], {}, {})
        if not self._is_worthwhile():
            return joined
        while self.waiting and len(self.live) < EMBEDDED_ROWS and self._has_room(self.waiting[0]):
            row = self.waiting.popleft()
            prompt = row.prompt
            prompt.num_waiting -= 1
            prompt.num_live += 1
            size = len(prompt.ids)
            self.work += EngineWork(prompt_tokens=size, cached_tokens=size * prompt.is_held)
            if not prompt.is_held:
                blocks = self.prompt_region.take(prompt.number, size)
                joined.prompts[prompt] = Text(prompt.ids, 0, blocks)
                prompt.is_held = True
            if row.ids:
                blocks = self.response_region.take(row.number, len(row.ids))
                row.block = int(blocks[-1])
                ids = (*prompt.ids, *row.ids)
                joined.resumed[row] = Text(ids, size, blocks)
            else:
                row.uniforms = uniform_draws([row.seed], self._max_new_tokens)[0].numpy()
            self.live.append(row)
            joined.rows.append(row)
        return joined

    def extend(self) -> None:
        """Give every live row a place for its last id; without room the youngest wait again."""
        while sum(row.offset == 0 for row in self.live) > self._pool.num_free:
            if not self._release_idle_prompts():
                self._set_back(self.live[-1])
        for row in self.live:
            if row.offset == 0:
                row.block = int(self.response_region.take(row.number, 0)[0])
            self.response_region.fill[row.block] += 1
        if self.live:
            self.work += EngineWork(running=len(self.live), waiting=len(self.waiting), moments=1)

    def end(self, rows: Sequence[Row]) -> None:
        """Take the blocks of rows that have ended, and pack what is left."""
        for row in rows:
            self.live.remove(row)
            self._release(row)
            self.ended.append(row)
            if not row.prompt.num_live and not row.prompt.num_waiting:
                self._release_prompt(row.prompt)
        if not rows:
            return
        self._is_short = False
        self.prompt_region.pack()
        places = self.response_region.pack()
        if places is not None:
            for row in self.live:
                row.block = int(places[row.block])

    def _is_worthwhile(self) -> bool:
        if self._is_short or not self.waiting:
            return False
        room = min(EMBEDDED_ROWS - len(self.live), self._pool.num_free)
        return room >= min(JOINING_SHARE * len(self.live), len(self.waiting))

    def _has_room(self, row: Row) -> bool:
        """Say whether a row finds room, if need be in place of prompts that no row reads."""
        if not self.live:
            self._release_idle_prompts(but=row.prompt)
            return True
        needed = 0 if row.prompt.is_held else num_blocks(len(row.prompt.ids))
        used = int((self.response_region.fill > 0).sum())
        needed += max(1, num_blocks(self._usual_length()) * (len(self.live) + 1) - used)
        needed += num_blocks(len(row.ids))
        if needed > self._pool.num_free:
            self._release_idle_prompts(but=row.prompt)
        return needed <= self._pool.num_free

    def _usual_length(self) -> int:
        """Return how long a response becomes: as those that have ended, at first half the cap."""
        if not self.ended:
            return self._max_new_tokens // 2
        return sum(len(row.ids) for row in self.ended) // len(self.ended)

    def _set_back(self, row: Row) -> None:
        assert len(self.live) > 1, "the pool has no room for one response"
        self.live.remove(row)
        self._release(row)
        row.prompt.num_waiting += 1
        self.waiting.appendleft(row)
        self._is_short = True

    def _release(self, row: Row) -> None:
        self.response_region.release(row.number)
        row.prompt.num_live -= 1

    def _release_prompt(self, prompt: SharedPrompt) -> None:
        self.prompt_region.release(prompt.number)
        prompt.is_held = False
        prompt.logits = None

    def _release_idle_prompts(self, but: SharedPrompt | None = None) -> bool:
        """Forget prompts that no live row reads; they are read again. Says whether there were."""
        held = {row.prompt for row in self.waiting if row.prompt.is_held}
        idle = [prompt for prompt in held if not prompt.num_live and prompt is not but]
        for prompt in idle:
            self._release_prompt(prompt)
        return bool(idle)
