"""Spreads requests over servers, and brings back the servers and requests that fail."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain

from megatron_gad.engines.base import EngineWork
from megatron_gad.engines.sglang.client import Json, ServerFailed
from megatron_gad.engines.sglang.replica import Replica
from megatron_gad.engines.sglang.requests import cached_tokens
from megatron_gad.engines.sglang.sharing import Borrowing, Guest, Places
from megatron_gad.types import Rollout

BORROW_INTERVAL_S = 0.05
WATCH_INTERVAL_S = 1.0
JOIN_TIMEOUT_S = 10.0
JOIN_POLL_S = 0.1


class Dispatch:
    """One list of requests on its way through all servers.

    Free places of any server take from one queue, so that a long response holds up its own place
    only; the server that works on the fewest is next. A request of a server that fails goes back to
    the queue's front; it has no result until it has one whole answer, so nothing is lost or counted
    twice.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        requests: Sequence[Json],
        read: Callable[[Json], Rollout],
        load: Callable[[Replica], None],
        max_failures: int,
        borrowing: Borrowing | None = None,
    ) -> None:
        """requests: bodies for /generate, each with its own "rid".

        read: makes a rollout of an answer; ServerFailed if no working server gives such a one.
        load: gives a server that was started again the current weights.
        max_failures: of one request, after one more of which the run ends, even if all others are
            answered.
        borrowing: of places on the servers of other ranks, which are lent places in turn.
        """
        self._replicas = replicas
        self._requests = requests
        self._read = read
        self._load = load
        self._max_failures = max_failures
        self._pending = deque(range(len(requests)))
        self._num_failures: Counter[int] = Counter()
        self._running: dict[int, Replica | Guest] = {}
        # Of a server that failed, until it is back: the places that noticed, and their requests.
        self._failing: Counter[Replica] = Counter()
        self._given_back: dict[Replica | Guest, list[str]] = {replica: [] for replica in replicas}
        self._rollouts: dict[int, Rollout] = {}
        self._begin = time.monotonic()
        self._work = EngineWork()
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._borrowing = borrowing
        self._guests: dict[str, Guest] = {}
        self._withdrawn: set[Replica] = set()
        self._have_all_finished = borrowing is None

    def run(self, places: int, health_interval_s: float, health_timeout_s: float) -> list[Rollout]:
        """Return the rollouts in the order of the requests.

        places: requests that one server works on at a time.
        health_interval_s, health_timeout_s: how often a server is asked how it is, and how long it
            may take to answer before it counts as hung.

        It returns when all requests are answered, those of ranks that borrow from this one, too;
        even while a server is still being brought back,
        whose ``lock`` is held as long.

        Raises what a server refuses, and RuntimeError when one fails too often.
        """
        own = min(places, len(self._requests))
        if self._borrowing is not None:
            own = max(own, 1)
            for replica in self._replicas:
                self._borrowing.places.lend(replica.name, places - own)
            threading.Thread(target=self._borrow, args=(self._borrowing,), daemon=True).start()
        threads: dict[Replica, list[threading.Thread]] = {}
        for replica in self._replicas:
            watching = (replica, health_interval_s, health_timeout_s)
            threads[replica] = [
                threading.Thread(target=self._watch, args=watching, daemon=True),
                *(
                    threading.Thread(target=self._serve, args=(replica, number), daemon=True)
                    for number in range(own)
                ),
            ]
        for thread in chain.from_iterable(threads.values()):
            thread.start()
        try:
            with self._changed:
                self._changed.wait_for(self._is_over)
        except BaseException:
            self._fail(RuntimeError("sampling was interrupted"))
            raise
        finally:
            if self._borrowing is not None and self._error is not None:
                self._borrowing.tell(self._error)
            self._abort_running()
            self._join(threads)
        if self._error is not None:
            raise self._error
        return [self._rollouts[number] for number in range(len(self._requests))]

    def work(self) -> EngineWork:
        """Return what was done from the start until now."""
        seconds = time.monotonic() - self._begin
        return self._work + EngineWork(seconds=seconds, moments=seconds)

    def interrupt(self, reason: str) -> None:
        """Let another thread's ``run`` end with an error; servers that go on stop the requests."""
        self._fail(RuntimeError(reason))
        self._abort_running()

    def _join(self, threads: Mapping[Replica, Sequence[threading.Thread]]) -> None:
        """Wait for threads, but for those of a server that is still being brought back."""
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        for replica, of_replica in threads.items():
            for thread in of_replica:
                while thread.is_alive() and not self._failing[replica]:
                    if time.monotonic() > deadline:
                        return
                    thread.join(JOIN_POLL_S)

    def _is_over(self) -> bool:
        return self._error is not None or (self._has_all_answers() and self._have_all_finished)

    def _has_all_answers(self) -> bool:
        return len(self._rollouts) == len(self._requests)

    def _serve(self, replica: Replica, place: int) -> None:
        """Work on requests, one at a time, until all are done or the place is lent.

        place: its number; the first of a server is never lent, so that each rank can go on alone.
        """
        while (number := self._take(replica, may_lend=place > 0)) is not None:
            generation = replica.generation
            begin = time.monotonic()
            try:
                answer = replica.generate(self._body(number))
                rollout = self._read(answer)
            except ServerFailed as error:
                self._give_back(number, replica, error)
                self._bring_back(replica, generation, error)
            except Exception as error:  # noqa: BLE001 - the thread that waits raises it
                self._fail(error)
            else:
                replica.num_failures = 0
                self._finish(number, rollout, self._work_of(number, rollout, answer, begin))
        if self._borrowing is not None and not self._is_over():
            self._borrowing.places.lend(replica.name)

    def _take(self, replica: Replica, may_lend: bool) -> int | None:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_over()
                    or (self._pending and self._is_next(replica))
                    or (may_lend and self._may_lend(replica))
                )
            )
            if self._is_over():
                return None
            if not self._pending:
                return None
            number = self._pending.popleft()
            self._running[number] = replica
            self._changed.notify_all()  # another server may be next now
            return number

    def _may_lend(self, replica: Replica) -> bool:
        """Say whether a place of a server is of no use to this rank, and good for others."""
        if self._borrowing is None or self._pending:
            return False
        return not self._failing[replica] and replica not in self._withdrawn

    def _borrow(self, borrowing: Borrowing) -> None:
        """Send requests that wait to other ranks' servers too, until all ranks are done."""
        is_told, places = False, borrowing.places
        try:
            while not self._is_over():
                with self._changed:
                    self._changed.wait_for(self._is_over, BORROW_INTERVAL_S)
                    num_waiting, is_done = len(self._pending), self._has_all_answers()
                for url, count in places.borrow(num_waiting):
                    self._use(borrowing, url, count)
                for url, guest in list(self._guests.items()):
                    if places.is_withdrawn(url):
                        guest.leave(self._ids_on(guest))
                        del self._guests[url]
                if is_done and not is_told:
                    places.finish()
                    is_told = True
                if reason := places.failure():
                    self._fail(RuntimeError(f"sampling failed on another rank: {reason}"))
                if is_told and places.have_all_finished():
                    with self._changed:
                        self._have_all_finished = True
                        self._changed.notify_all()
        except RuntimeError as error:  # of the store
            self._fail(error)

    def _use(self, borrowing: Borrowing, url: str, count: int) -> None:
        """Use as many borrowed places as there are requests for, and lend the rest on."""
        with self._changed:
            used = min(count, len(self._pending))
        borrowing.places.lend(url, count - used)
        for _ in range(used):
            guest = self._guests.setdefault(url, borrowing.guest(url))
            target = partial(self._serve_at, guest, borrowing.places)
            threading.Thread(target=target, daemon=True).start()

    def _serve_at(self, guest: Guest, places: Places) -> None:
        """Work on requests at a borrowed place while any wait; lend it on unless it failed."""
        while True:
            with self._changed:
                if self._is_over():
                    return
                if not self._pending:
                    break
                number = self._pending.popleft()
                self._running[number] = guest
            begin = time.monotonic()
            try:
                answer = guest.generate(self._body(number))
                rollout = self._read(answer)
            except ServerFailed as error:
                with self._changed:
                    self._put_back(number, error)
                return
            except Exception as error:  # noqa: BLE001 - the thread that waits raises it
                self._fail(error)
                return
            self._finish(number, rollout, self._work_of(number, rollout, answer, begin))
        places.lend(guest.name)

    def _is_next(self, replica: Replica) -> bool:
        """Say whether no other server that works has more room."""
        if self._failing[replica]:
            return False
        numbers = Counter(self._running.values())
        return numbers[replica] <= min(numbers[r] for r in self._replicas if not self._failing[r])

    def _body(self, number: int) -> Json:
        """Return a request; sent again it has another id, as the server may not be rid of it."""
        request, num_failures = self._requests[number], self._num_failures[number]
        return {**request, "rid": f"{request['rid']}_{num_failures}"} if num_failures else request

    def _work_of(self, number: int, rollout: Rollout, answer: Json, begin: float) -> EngineWork:
        """Return what one request took. begin: the time it was sent."""
        return EngineWork(
            tokens=len(rollout.ids),
            running=time.monotonic() - begin,
            waiting=begin - self._begin,
            prompt_tokens=len(self._requests[number].get("input_ids", ())),
            cached_tokens=cached_tokens(answer),
        )

    def _finish(self, number: int, rollout: Rollout, work: EngineWork) -> None:
        with self._changed:
            self._work += work
            self._running.pop(number, None)
            self._rollouts[number] = rollout
            self._changed.notify_all()

    def _give_back(self, number: int, replica: Replica, error: ServerFailed) -> None:
        """Let a request be sent again, to a server that works."""
        with self._changed:
            self._given_back[replica].append(self._body(number)["rid"])
            self._failing[replica] += 1
            self._put_back(number, error)

    def _put_back(self, number: int, error: ServerFailed) -> None:
        """Let a request wait again, first of all; the lock is held."""
        self._running.pop(number, None)
        self._num_failures[number] += 1
        self._pending.appendleft(number)
        # Where a server fails at everything, it is named, which comes one failure earlier.
        if self._num_failures[number] > self._max_failures + 1:
            self._error = self._error or RuntimeError(
                f"one request failed {self._num_failures[number]} times, last with: {error} "
                f"(a server may fail {self._max_failures} times in a row)"
            )
        self._changed.notify_all()

    def _withdraw(self, replica: Replica) -> None:
        """Lend no place of a server that has failed, and let other ranks leave it."""
        if self._borrowing is not None and replica not in self._withdrawn:
            self._withdrawn.add(replica)
            self._borrowing.places.withdraw(replica.name)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _bring_back(self, replica: Replica, generation: int, error: ServerFailed) -> None:
        """Recover a server once, whichever of its places notices the failure first."""
        with replica.lock:
            if replica.generation == generation and not self._is_over():
                self._withdraw(replica)
                try:
                    replica.recover(error, self._load, self._ids_on(replica))
                except Exception as fatal:  # noqa: BLE001 - the thread that waits raises it
                    self._fail(fatal)
                replica.generation += 1
            with self._changed:
                self._failing[replica] -= 1
                if not self._failing[replica]:
                    self._given_back[replica].clear()
                self._changed.notify_all()

    def _watch(self, replica: Replica, interval_s: float, timeout_s: float) -> None:
        """End a server that hangs; its requests then fail, and are sent again."""
        waited = 0.0
        while not self._is_over():
            with self._changed:
                self._changed.wait_for(self._is_over, WATCH_INTERVAL_S)
            waited += WATCH_INTERVAL_S
            if waited < interval_s or self._is_over():
                continue
            waited = 0.0
            generation = replica.generation
            if not replica.is_alive(timeout_s) and not self._is_over():
                with replica.lock:
                    if replica.generation == generation and not self._is_over():
                        self._withdraw(replica)
                        replica.kill()

    def _abort_running(self) -> None:
        for replica in self._replicas:
            replica.abort(self._ids_on(replica))
        for guest in list(self._guests.values()):
            guest.leave(self._ids_on(guest))

    def _ids_on(self, server: Replica | Guest) -> list[str]:
        """Return the ids of the requests that a server works on, or did when it failed."""
        with self._changed:
            running = [n for n, owner in self._running.items() if owner is server]
            return [*self._given_back.get(server, ()), *(self._body(n)["rid"] for n in running)]
