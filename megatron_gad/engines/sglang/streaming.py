"""Buckets on their way to all servers, each while the next one is gathered."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

from megatron_gad.engines.sglang.buckets import Bucket
from megatron_gad.engines.sglang.replica import Replica
from megatron_gad.engines.sglang.transport import Transport

Failures = dict[Replica, Exception]


def stream_buckets(
    buckets: Iterator[Bucket],
    transport: Transport,
    replicas: Sequence[Replica],
    keep: Callable[[Bucket], None],
) -> Failures:
    """Send a bucket to all servers while the next is gathered; two at most exist meanwhile.

    buckets: read to the end whatever happens. keep: is given every bucket; what it holds of one
    is not counted.

    Returns what went wrong on the way to a server, which is then given nothing more.
    """
    failures: Failures = {}

    def attempt(replica: Replica, call: Callable[[], None]) -> None:
        if replica not in failures:
            try:
                call()
            except Exception as error:  # noqa: BLE001 - the caller tells them apart
                failures[replica] = error

    with ThreadPoolExecutor(len(replicas)) as pool:
        sending: list[Future[None]] = [
            pool.submit(attempt, replica, replica.begin_load) for replica in replicas
        ]
        for bucket in buckets:
            transport.stage(bucket)
            keep(bucket)
            wait(sending)
            sending = [
                pool.submit(attempt, replica, partial(replica.take, bucket)) for replica in replicas
            ]
            del bucket  # the senders hold it
    return failures
