"""Tiny batches and trainers for the tests of training."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed import all_gather

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.models import DiscriminatorConfig, OptimizerConfig, StudentConfig
from megatron_gad.data.batching import AnyBatch, take_rows
from megatron_gad.models.families import load_hf_config
from megatron_gad.training.optimizer import torch_optimizers
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import Trainer, TrainerSettings
from megatron_gad.types import Batch, PairBatch

M = TypeVar("M", StudentConfig, DiscriminatorConfig)
SEED = 5
# (prompt length, response length) of every row; two rows have no response.
ROWS = ((3, 4), (5, 1), (2, 0), (4, 0), (6, 5), (1, 2), (7, 4), (2, 8))
GROUP_SIZE = 3
# The same for two groups of the teacher's row and three rollouts.
PAIR_ROWS = ((4, 3), (4, 1), (4, 6), (4, 2), (2, 8), (2, 5), (2, 7), (2, 1))


def widened(batch: AnyBatch, width: int) -> AnyBatch:
    """Return a batch with more padding: as many tokens a row as ``width``, which none is over."""
    assert width >= int(batch.lengths.max())
    return take_rows(batch, range(len(batch.lengths)), multiple_of=width)


def student_batch(vocab_size: int, rows: tuple[tuple[int, int], ...] = ROWS) -> Batch:
    """A batch of random ids with everything that the losses of the student read.

    The reference's logprobs are numbers of a plausible size; old_logprobs are left out.
    """
    tokens, lengths, response_mask = _random_rows(vocab_size, rows)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(tokens.shape, generator=generator)
    ref_logprobs = torch.where(response_mask, noise * 0.1 - 3.0, 0.0)
    batch = Batch(tokens, lengths, response_mask).with_ref_logprobs(ref_logprobs)
    return batch.with_advantages(torch.randn(len(rows), generator=generator))


def pair_rows(
    vocab_size: int,
    num_trained: int = GROUP_SIZE,
    rows: tuple[tuple[int, int], ...] = PAIR_ROWS,
) -> PairBatch:
    """A batch of random ids for the discriminator: groups of the teacher and three rollouts."""
    tokens, lengths, response_mask = _random_rows(vocab_size, rows)
    trained = torch.arange(1 + GROUP_SIZE) <= num_trained
    trained = trained.repeat(len(rows) // (1 + GROUP_SIZE))
    return PairBatch(tokens, lengths, response_mask, trained, GROUP_SIZE)


def with_equal_prompts(batch: AnyBatch, size: int) -> AnyBatch:
    """The batch, whose rows have the prompt of the first in each group of so many; equally long."""
    tokens = batch.tokens.clone()
    starts = torch.where(
        batch.response_mask.any(1), batch.response_mask.int().argmax(1), batch.lengths
    )
    for row, start in enumerate(starts.tolist()):
        first = row - row % size
        assert starts[first] == start, (row, start)
        tokens[row, :start] = tokens[first, :start]
    return replace(batch, tokens=tokens)


def with_copies(pairs: PairBatch, source: dict[int, int]) -> PairBatch:
    """The batch, some rows of which hold what others do: row -> the other."""
    rows = [source.get(row, row) for row in range(len(pairs.lengths))]
    return replace(
        pairs,
        tokens=pairs.tokens[rows],
        lengths=pairs.lengths[rows],
        response_mask=pairs.response_mask[rows],
    )


def rows_of(batch: Any, rows: slice | list[int]) -> Any:
    """Some rows of a batch, at its full width."""
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **{name: value[rows] for name, value in tensors.items()})


def make_student(
    folder: Path,
    place: Parallel,
    layout: ParallelConfig | None = None,
    compute: ComputeConfig | None = None,
    **optimizer: Any,
) -> Trainer:
    """A language model with the weights of a folder; clips no gradient unless told to."""
    config, settings = _configured(StudentConfig(lr=1e-2), layout, compute, optimizer)
    trainer = Trainer.language_model(load_hf_config(folder), config, place, settings)
    trainer.load_hf_weights(folder)
    return trainer


def make_discriminator(
    folder: Path,
    place: Parallel,
    layout: ParallelConfig | None = None,
    compute: ComputeConfig | None = None,
    **options: Any,
) -> Trainer:
    """A scorer with the weights of a folder and a drawn head; clips no gradient unless told to."""
    model = DiscriminatorConfig(lr=1e-2, head_std=0.3)
    config, settings = _configured(model, layout, compute, options)
    trainer = Trainer.scorer(load_hf_config(folder), config, place, settings)
    trainer.load_hf_weights(folder)
    return trainer


def _configured(
    model: M, layout: ParallelConfig | None, compute: ComputeConfig | None, options: dict[str, Any]
) -> tuple[M, TrainerSettings]:
    """Give the model and what trains it the options that each of them has."""
    ours = {field.name for field in fields(OptimizerConfig)}
    optimizer = replace(
        OptimizerConfig(clip_grad=0.0), **{key: x for key, x in options.items() if key in ours}
    )
    model = replace(model, **{key: x for key, x in options.items() if key not in ours})
    layout, compute = layout or ParallelConfig(), compute or ComputeConfig()
    return model, TrainerSettings(layout, compute, SEED, optimizer)


def under_hf_names(trainer: Trainer, values: list[Tensor]) -> dict[str, Tensor]:
    """Give tensors that belong to the parameters, such as gradients, the names of the weights."""
    pairs = zip(values, parameters(trainer), strict=True)
    held = [value.detach().to("cpu", p.dtype, copy=True) for value, p in pairs]
    trainer.swap(held)
    named = dict(trainer.hf_weights())
    trainer.swap(held)
    return named


def parameters(trainer: Trainer) -> list[Any]:
    """The parameters of this rank, in the order of a snapshot."""
    return [parameter for chunk in trainer.modules_to_read() for parameter in chunk.parameters()]


def training_state(trainer: Trainer) -> list[Tensor]:
    """Copies of this rank's weights, of their float32 main copies if any, and of the moments."""
    state = torch_optimizers(trainer.optimizer_to_write())[0].state
    values = []
    for parameter in parameters(trainer):
        main = getattr(parameter, "main_param", parameter)
        moments = [state[main][name] for name in ("step", "exp_avg", "exp_avg_sq")]
        values += [parameter, main, *moments]
    return [value.detach().clone() for value in values]


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """The gradients of the last step by Hugging Face name; clipped where the trainer clips."""
    if trainer.settings.layout.use_distributed_optimizer:
        _gather_gradients(trainer)
    return under_hf_names(trainer, [p.main_grad for p in parameters(trainer)])


def _gather_gradients(trainer: Trainer) -> None:
    """Complete the gradients, of which each rank of a distributed optimizer has a shard only."""
    for chunk in trainer._chunks:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            group = buffer.data_parallel_group
            for bucket in buffer.buckets:
                shards = list(bucket.grad_data.chunk(group.size()))
                all_gather(shards, shards[group.rank()].clone(), group=group)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """All weights by Hugging Face name."""
    return dict(trainer.hf_weights())


def _random_rows(
    vocab_size: int, rows: tuple[tuple[int, int], ...]
) -> tuple[Tensor, Tensor, Tensor]:
    starts = torch.tensor([prompt for prompt, _ in rows])
    lengths = torch.tensor([prompt + response for prompt, response in rows])
    width = int(lengths.max())
    generator = torch.Generator().manual_seed(1)
    # Without the padding id 0, whose embedding transformers gives no gradient.
    tokens = torch.randint(1, vocab_size, (len(rows), width), generator=generator)
    position = torch.arange(width)
    tokens = torch.where(position < lengths[:, None], tokens, 0)
    response_mask = (position >= starts[:, None]) & (position < lengths[:, None])
    return tokens, lengths, response_mask
