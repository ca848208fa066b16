"""Process groups of one run, and what a rank needs to know about its place in them."""

import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_gad import cpu_seam
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.run_control import WatchdogConfig
from megatron_gad.environment import (
    environment_rank,
    environment_world_size,
    local_rank,
    local_world_size,
)
from megatron_gad.models.layout_rules import has_whole_copies_together, world_problem
from megatron_gad.training.megatron_state import MegatronState, without_layout

T = TypeVar("T")

ANSWER = "megatron_gad/first_process"  # a key of the store: empty, or what is wrong
LONGEST_WAIT = timedelta(days=1)  # the watchdog ends it before
COLLECTIVE_TIMEOUT = WatchdogConfig().collective_timeout


@dataclass(frozen=True)
class Parallel:
    """This rank's place in one layout; a run may have two.

    A *model-parallel group* is the TP x CP x PP ranks that work on one share of the data, and hold
    one copy of the models (CP copies of their weights); its first rank (``is_engine_rank``) owns
    the group's rollout engine.
    """

    rank: int
    world_size: int
    data_rank: int
    data_size: int
    is_engine_rank: bool
    is_last_stage: bool
    device: torch.device
    model_group: dist.ProcessGroup
    model_group_ranks: tuple[int, ...]
    data_group: dist.ProcessGroup
    pipeline_group: dist.ProcessGroup
    last_stage_rank: int
    megatron_state: MegatronState

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes the run's files."""
        return self.rank == 0

    def share(self, items: list[T]) -> list[T]:
        """Return this data rank's contiguous share of a list whose length it divides."""
        assert len(items) % self.data_size == 0, (len(items), self.data_size)
        size = len(items) // self.data_size
        return items[self.data_rank * size : (self.data_rank + 1) * size]

    def from_engine_rank(self, value: T | None) -> T:
        """Send any picklable value from the engine rank to its whole model-parallel group."""
        return _broadcast(value, self.model_group_ranks[0], self.model_group)

    def wait_for_group(self) -> None:
        """Wait for every rank of the model-parallel group."""
        dist.barrier(group=self.model_group)

    def group_devices(self) -> tuple[int, ...]:
        """Return the numbers of the devices of the model-parallel group's ranks on this host."""
        first = self.rank - local_rank()
        numbers = (rank - first for rank in self.model_group_ranks)
        return tuple(number for number in numbers if 0 <= number < local_world_size())

    def from_last_stage(self, value: T | None) -> T:
        """Send any picklable value from the last pipeline stage to all stages."""
        return _broadcast(value, self.last_stage_rank, self.pipeline_group)

    def gather_over_data(self, value: T) -> list[T]:
        """Return the values of all data ranks, in their order, on every rank."""
        if self.data_size == 1:
            return [value]
        gathered: list = [None] * self.data_size
        dist.all_gather_object(gathered, value, group=self.data_group)
        return gathered

    def exchange_over_data(self, values: Sequence[T]) -> list[T]:
        """Give every data rank one value, and return what each of them has for this rank.

        Values travel to their rank alone, as bytes; this rank's own stays as it is.

        values: picklable; one for every data rank, in their order, which is that of the result.
        """
        assert len(values) == self.data_size, (len(values), self.data_size)
        if self.data_size == 1:
            return list(values)
        # Of two ranks or more, another's is never without bytes, so that the buffer is not, either.
        parts = [
            b"" if rank == self.data_rank else pickle.dumps(value)
            for rank, value in enumerate(values)
        ]
        # NCCL carries nothing that lies on the host.
        device = self.device if dist.get_backend(self.data_group) == "nccl" else "cpu"
        sizes = torch.tensor([len(part) for part in parts], device=device)
        arriving = torch.empty_like(sizes)
        dist.all_to_all_single(arriving, sizes, group=self.data_group)
        sent = torch.frombuffer(bytearray().join(parts), dtype=torch.uint8).to(device)
        splits = arriving.tolist()
        received = torch.empty(sum(splits), dtype=torch.uint8, device=device)
        dist.all_to_all_single(received, sent, splits, sizes.tolist(), group=self.data_group)
        pieces = received.cpu().split(splits)
        return [
            values[rank] if rank == self.data_rank else pickle.loads(piece.numpy().data)
            for rank, piece in enumerate(pieces)
        ]

    def gather_over_world(self, value: T) -> list[T]:
        """Return the values of all ranks on every rank."""
        if self.world_size == 1:
            return [value]
        gathered: list = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def from_first_rank(self, value: T | None) -> T:
        """Send any picklable value from the first rank to all ranks."""
        world = dist.group.WORLD
        assert world is not None, "torch.distributed was started with these groups"
        return _broadcast(value, 0, world)

    def max_over_data(self, value: float) -> float:
        """Return the largest value over data ranks; nan where any is nan."""
        values = self.gather_over_data(value)
        return math.nan if any(math.isnan(each) for each in values) else max(values)

    def mean_over_data(self, sums: dict[str, tuple[float, float]]) -> dict[str, float]:
        """Return sum / count of every entry over data ranks, 0 where the count is 0."""
        gathered = self.gather_over_data(sums)
        totals = {
            name: (sum(part[name][0] for part in gathered), sum(part[name][1] for part in gathered))
            for name in sums
        }
        return {name: total / count if count else 0.0 for name, (total, count) in totals.items()}

    def sum_over_data(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over data ranks."""
        if self.data_size > 1:
            dist.all_reduce(values, group=self.data_group)
        return values

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()


def _broadcast(value: T | None, source: int, group: dist.ProcessGroup) -> T:
    box: list = [value]
    if dist.get_world_size(group) > 1:
        dist.broadcast_object_list(box, src=source, group=group)
    return box[0]


def meet() -> dist.Store | None:
    """Return where the processes of a run can leave each other notes, without a process group.

    None in a world of one.
    """
    if environment_world_size() == 1:
        return None
    store, _, _ = next(dist.rendezvous("env://"))
    return store


def ask_first_process(store: dist.Store | None, question: Callable[[], T]) -> T | None:
    """Return the first process's answer on it alone, and raise its ValueError on every process.

    All processes call it, and wait for as long as the first one takes.
    """
    if store is None:
        return question()
    if environment_rank() != 0:
        store.wait([ANSWER], LONGEST_WAIT)
        problem = store.get(ANSWER).decode()
        if problem:
            raise ValueError(problem)
        return None
    try:
        answer = question()
    except ValueError as error:
        store.set(ANSWER, str(error).encode("utf-8", "backslashreplace").decode())
        raise
    store.set(ANSWER, "")
    return answer


def initialize(
    config: ParallelConfig,
    seed: int,
    store: dist.Store | None = None,
    timeout: timedelta = COLLECTIVE_TIMEOUT,
) -> Parallel:
    """Start torch.distributed and Megatron's groups; without torchrun this is a world of one.

    store: what ``meet`` returned, if it was called. timeout: of every collective.

    Raises ValueError where the layout does not divide the world.
    """
    assert not cpu_seam.is_missing(), "no CUDA device; call cpu_seam.install_if_needed() first"
    _check_layout(config, environment_world_size())
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank())
    if not dist.is_initialized():
        _start_torch_distributed("nccl" if on_gpu else "gloo", timeout, store)
    return _make_groups(config, seed, timeout)


def add_layout(
    config: ParallelConfig, seed: int, timeout: timedelta = COLLECTIVE_TIMEOUT
) -> Parallel:
    """Make one more layout over the same ranks. All ranks call it.

    The layout that was there stays installed; the new one is, while its state is active.

    timeout: of every collective.

    Raises ValueError where the layout does not divide the world.
    """
    _check_layout(config, dist.get_world_size())
    with without_layout():
        return _make_groups(config, seed, timeout)


def _make_groups(config: ParallelConfig, seed: int, timeout: timedelta) -> Parallel:
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline_model_parallel_size,
        context_parallel_size=config.context_parallel_size,
        expert_model_parallel_size=config.expert_model_parallel_size,
        expert_tensor_parallel_size=config.expert_tensor_parallel_size,
        order=_rank_order(config),
        create_gloo_process_groups=False,
        distributed_timeout_minutes=math.ceil(timeout / timedelta(minutes=1)),
    )
    model_parallel_cuda_manual_seed(seed)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu"
    return _describe(device, config, timeout)


def _rank_order(config: ParallelConfig) -> str:
    """Return which ranks follow each other, in Megatron's words."""
    return "tp-cp-ep-pp-dp" if has_whole_copies_together(config) else "tp-cp-ep-dp-pp"


def _check_layout(config: ParallelConfig, world_size: int) -> None:
    problem = world_problem(config, world_size)
    if problem:
        raise ValueError(problem)


def _start_torch_distributed(backend: str, timeout: timedelta, store: dist.Store | None) -> None:
    if store is not None:
        rank, size = environment_rank(), environment_world_size()
        store.set_timeout(timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        return
    if environment_world_size() > 1:
        dist.init_process_group(backend, timeout=timeout)
        return
    store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)


def _describe(device: torch.device | str, config: ParallelConfig, timeout: timedelta) -> Parallel:
    # Megatron's annotations also allow for what a rank outside a group gets.
    groups: Any = parallel_state
    model_group = _model_parallel_group(config, timeout)
    model_group_ranks = tuple(dist.get_process_group_ranks(model_group))
    return Parallel(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        is_engine_rank=dist.get_rank() == model_group_ranks[0],
        is_last_stage=parallel_state.is_pipeline_last_stage(),
        device=torch.device(device),
        model_group=model_group,
        model_group_ranks=model_group_ranks,
        data_group=groups.get_data_parallel_group(),
        pipeline_group=groups.get_pipeline_model_parallel_group(),
        last_stage_rank=parallel_state.get_pipeline_model_parallel_last_rank(),
        megatron_state=MegatronState.installed(),
    )


def _model_parallel_group(config: ParallelConfig, timeout: timedelta) -> dist.ProcessGroup:
    """Return the ranks of all tensor, context and pipeline ranks with this rank's data rank.

    Megatron's own leaves context parallelism out. Every rank makes the groups of all data ranks.
    Only objects travel in it, on the host: whoever waits there for the engine's rollouts must not
    keep a GPU busy on which a server samples, as a waiting NCCL kernel would.
    """
    generator = parallel_state.RankGenerator(
        tp=parallel_state.get_tensor_model_parallel_world_size(),
        cp=parallel_state.get_context_parallel_world_size(),
        ep=1,
        dp=parallel_state.get_data_parallel_world_size(),
        pp=parallel_state.get_pipeline_model_parallel_world_size(),
        order=_rank_order(config),
    )
    own: Any = None
    for ranks in generator.get_ranks("tp-cp-pp"):
        group = dist.new_group(ranks, timeout, backend="gloo")
        own = group if dist.get_rank() in ranks else own
    return own


def shut_down() -> None:
    """Destroy all process groups."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
