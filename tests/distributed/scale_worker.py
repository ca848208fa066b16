"""Trains, samples and saves at several layouts, and counts what is sent; started on four ranks.

``main`` takes the folder with the Hugging Face folders "tied" and "untied"; what every rank counted
goes into "counted.pt" there.
"""

from functools import partial
from pathlib import Path
from typing import Any

from megatron.core import parallel_state
from torch.distributed import (
    all_gather_object,
    barrier,
    destroy_process_group,
    get_process_group_ranks,
    get_world_size,
    init_process_group,
)

from megatron_gad.algorithms.discriminator import discriminator_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.checkpoint import Residents, load_model, save_checkpoint
from megatron_gad.training.checkpoint_files import iteration_folder
from megatron_gad.training.exchange import rebalance
from megatron_gad.training.parallel import Parallel, initialize
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Group, Prompt, Rollout
from tests.distributed.counting import CountedCalls
from tests.distributed.workers import drop_groups, save
from tests.tiny_training import (
    make_discriminator,
    make_student,
    pair_rows,
    rows_of,
    student_batch,
)

VOCAB_SIZE, CHUNK_SIZE, RECOMPUTE = 128, 3, "full"
ROWS, PAIRS = ((3, 4),) * 8, ((4, 4),) * 16
# Names tell the model, and whether the layers are computed again.
LAYOUTS = {
    "tied tp2-pp2": ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2),
    "untied tp2-pp2-sp": ParallelConfig(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True
    ),
    "tied tp2-sp-dp2 again": ParallelConfig(
        tensor_model_parallel_size=2, sequence_parallel=True, use_distributed_optimizer=True
    ),
    "untied tp2-dp2 again": ParallelConfig(tensor_model_parallel_size=2),
    "untied pp2-dp2": ParallelConfig(pipeline_model_parallel_size=2),
    "untied dp4": ParallelConfig(use_distributed_optimizer=True),
}


def groups_of(place: Parallel) -> list[Group]:
    """Two groups of this data rank, with as many tokens as those of any other."""
    groups = []
    for index in (2 * place.data_rank, 2 * place.data_rank + 1):
        messages = ({"role": "user", "content": f"{index}_me" * 30},)
        prompt = Prompt(index, messages, f"{index}_by" * 80, ids(30), ids(80))
        rollouts = (
            Rollout(ids(80), tuple(map(float, range(80))), "stop", 7, f"{sample:04}" * 80, ids(80))
            for sample in range(4 * index, 4 * index + 4)
        )
        groups.append(Group(prompt, tuple(rollouts)))
    return groups


def ids(count: int) -> tuple[int, ...]:
    """As large ids as most of a vocabulary's, each time another object, as pickles see it."""
    return tuple(range(100_000, 100_000 + count))


def share(batch: Any, place: Parallel) -> Any:
    """This data rank's rows."""
    return rows_of(batch, place.share(list(range(len(batch.lengths)))))


class Counts:
    """What this rank counted, by what it did."""

    def __init__(self, place: Parallel) -> None:
        groups: dict[str, Any] = {
            "tensor": parallel_state.get_tensor_model_parallel_group(),
            "pipeline": parallel_state.get_pipeline_model_parallel_group(),
            "data": place.data_group,
            "model": place.model_group,
        }
        self.ranks = {name: tuple(get_process_group_ranks(each)) for name, each in groups.items()}
        self.ranks |= {"ends": self.ranks["pipeline"], "world": tuple(range(place.world_size))}
        self.stage = parallel_state.get_pipeline_model_parallel_rank()
        self.found: dict[str, Any] = {}

    def count(self, name: str, work: Any) -> None:
        """Do some work and count."""
        with CountedCalls() as counted:
            work()
        self.found[name] = (dict(counted.calls), dict(counted.num_bytes))


def sample(place: Parallel) -> None:
    """Send groups to the ranks of a model, and share them out at equal cost."""
    groups = place.from_engine_rank(groups_of(place) if place.is_engine_rank else None)
    rebalance(groups, lambda group: float(group.prompt.index + 1), place)


def count_layout(folder: Path, name: str) -> Counts:
    """Count everything at one layout."""
    drop_groups()
    layout, model = LAYOUTS[name], folder / name.split()[0]
    place = initialize(layout, seed=0)
    compute = ComputeConfig(
        micro_batch_size=2,
        logprob_chunk_size=CHUNK_SIZE,
        recompute_granularity=RECOMPUTE if "again" in name else None,
    )
    student: Trainer = make_student(model, place, layout, compute)
    discriminator: Trainer = make_discriminator(model, place, layout, compute)
    batch, pairs = student_batch(VOCAB_SIZE, ROWS), pair_rows(VOCAB_SIZE, rows=PAIRS)
    batch, pairs = share(batch, place), share(pairs, place)
    counts = Counts(place)
    counts.count("student", lambda: student.train(batch, supervised_loss))
    counts.count("reference", lambda: student.logprobs(batch))
    loss = partial(discriminator_loss, kind="bradley_terry")
    counts.count("discriminator", lambda: discriminator.train(pairs, loss))
    counts.count("swap", lambda: [*student.hf_weights()])
    counts.count("rollouts", lambda: sample(place))
    run, models = folder / name, {"student": student, "discriminator": discriminator}
    counts.count("save", lambda: save_checkpoint(run, 1, Residents(models), {}, place, 0))
    saved = iteration_folder(run, 1)
    counts.count("load", lambda: [load_model(saved / name, each) for name, each in models.items()])
    return counts


def main(folder: Path) -> None:
    """Count at every layout."""
    init_process_group("gloo")
    results: dict[str, list[Counts]] = {}
    for name in LAYOUTS:
        every_rank: list[Any] = [None] * get_world_size()
        all_gather_object(every_rank, vars(count_layout(folder, name)))
        results[name] = every_rank
    save(folder / "counted.pt", results)
    barrier()
    destroy_process_group()
