"""What the ranks of a step send each other, as formulas of model, layout and rows.

``tests/distributed/test_scale.py`` compares them with counted calls; ``scale.py`` prints tables.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from megatron_gad.planning.layout import Layout, stage_parameters
from megatron_gad.planning.shapes import ModelShape
from megatron_gad.planning.work import Lengths

Group = Literal["tensor", "pipeline", "ends", "data", "model", "world"]
Kind = Literal[
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "all_to_all",
    "broadcast",
    "gather",
    "scatter",
    "send",
    "barrier",
]
FLOAT32_BYTES = 4
# A picklable object travels as its size, and then as bytes.
SIZE_BYTES = 8
# Of a pipeline's message: three numbers of eight bytes, before the tensor.
SHAPE_BYTES = 24
# A sampled token as bytes of a pickle: its id (5) and log-probability (9), the id that the
# discriminator reads (5), and its text (4). A token of a prompt or of the teacher: id and text.
SAMPLED_BYTES, GIVEN_BYTES = 23, 9
# What a stage tells of one of its tensors before a swap.
PLACE_BYTES = 70
# What a rank tells, at most, of each tensor or state that it holds, or box of one; in two messages
# of each that it writes; and of each that it reads, beside what it tells of a model.
HELD_BYTES, WRITTEN_BYTES, READ_BYTES, READS_BYTES = 150, 450, 200, 4_000
# What is no tensor of a model.
OBJECTS_BYTES = 1_000
# A tensor, a state or a box of one in the list of a checkpoint.
LISTED_BYTES = 450
# A rank's piece of the optimizer's states cuts two tensors, each into up to so many boxes.
BOXES = 3
# What a rank writes of each model, and what the first one writes beside: two files and an index of
# each model, the run's state, the digests and the name of the newest checkpoint.
FILES_OF_RANK, FILES_OF_MODEL, FILES_OF_SAVE = 2, 3, 3


@dataclass(frozen=True)
class Traffic:
    """Calls of one rank that belong together.

    group: the ranks that take part. num_bytes: of all calls together, what this rank gives into
    them, or receives in a broadcast. is_object: a pickle, a little longer than this.
    """

    kind: Kind
    group: Group
    calls: int
    num_bytes: float
    is_object: bool = False


@dataclass(frozen=True)
class Pass:
    """One model's way over a data rank's rows.

    microbatches, tokens, predicted: of a data rank, tokens with what pads them, and the response
        tokens among them, all microbatches together.
    chunks: in which the output layer takes a microbatch's predicted tokens.
    row_bytes: of what comes out for each row, in float32.
    trains: backward and an update, too. num_metrics: of the loss.
    """

    shape: ModelShape
    layout: Layout
    is_scorer: bool
    value_bytes: int
    microbatches: int
    tokens: int
    predicted: int
    chunks: int
    row_bytes: int
    trains: bool
    num_metrics: int


def pass_traffic(work: Pass, stage: int) -> Iterator[Traffic]:
    """Yield what a rank of a pipeline stage sends in a pass, and in the update after it."""
    layout = work.layout
    if layout.tensor > 1:
        yield from _tensor_traffic(work, stage)
    if layout.pipeline > 1:
        yield from _pipeline_traffic(work, stage)
    if layout.data > 1:
        yield from _data_traffic(work, stage)
    if work.trains and layout.world > 1:
        norm_group: Group = "world" if layout.distributed_optimizer else "model"
        yield Traffic("all_reduce", norm_group, 1, FLOAT32_BYTES)
        # Whether all ranks may take the step.
        yield Traffic("all_gather", "world", 2, SIZE_BYTES, is_object=True)


def _tensor_traffic(work: Pass, stage: int) -> Iterator[Traffic]:
    """Yield the exchange of activations inside layers, and that of the output layer's numbers."""
    shape, layout, count = work.shape, work.layout, work.microbatches
    is_first, is_last = stage == 0, stage == layout.pipeline - 1
    whole = work.tokens * shape.hidden_size * work.value_bytes
    part = whole / layout.tensor
    num_layers = shape.num_layers // layout.pipeline
    # Attention and feed-forward; the embedding behind them.
    again = num_layers * 2 if work.trains and layout.recompute == "full" else 0
    reduced = num_layers * 2 + is_first + again
    back = num_layers * 2 if work.trains else 0
    if layout.sequence_parallel:
        yield Traffic(
            "reduce_scatter", "tensor", count * (reduced + back), whole * (reduced + back)
        )
        # Forward before the layers' matrices; backward once more for their gradients, and where
        # forward scattered.
        gathered = num_layers * 2 + again + 2 * back + (is_first and work.trains)
        yield Traffic("all_gather", "tensor", count * gathered, part * gathered)
        if is_last:
            values = work.tokens * FLOAT32_BYTES / layout.tensor if work.is_scorer else part
            yield Traffic("all_gather", "tensor", count, values)
        if work.trains:
            norms = num_layers * shape.norm_parameters + is_last * shape.hidden_size
            norms += is_last * work.is_scorer * shape.hidden_size
            yield Traffic("all_reduce", "tensor", 1, norms * FLOAT32_BYTES)
    else:
        yield Traffic("all_reduce", "tensor", count * (reduced + back), whole * (reduced + back))
    if is_last and not work.is_scorer:
        # Largest logit, two sums, the taken logit; the gradient of the hidden states.
        calls, num_bytes = 3 * count * work.chunks, 4 * FLOAT32_BYTES * work.predicted
        yield Traffic("all_reduce", "tensor", calls, num_bytes)
        if work.trains:
            num_bytes = work.predicted * shape.hidden_size * work.value_bytes
            yield Traffic("all_reduce", "tensor", count, num_bytes)


def _pipeline_traffic(work: Pass, stage: int) -> Iterator[Traffic]:
    """Yield hidden states to the next stage, their gradients to the one before, and the result."""
    shape, layout, count = work.shape, work.layout, work.microbatches
    is_first, is_last = stage == 0, stage == layout.pipeline - 1
    states = work.tokens * shape.hidden_size * work.value_bytes
    states /= layout.tensor if layout.sequence_parallel else 1
    ways = (not is_last) + (work.trains and not is_first)
    if ways:
        yield Traffic("send", "pipeline", ways * count, ways * count * SHAPE_BYTES)
        yield Traffic("send", "pipeline", ways * count, ways * states)
    yield Traffic("broadcast", "pipeline", 2, SIZE_BYTES + work.row_bytes, is_object=True)
    if work.trains:
        yield Traffic("broadcast", "pipeline", 1, 4)
        if shape.is_tied and not work.is_scorer and (is_first or is_last):
            columns = -(-shape.vocab_size // layout.tensor)
            yield Traffic("all_reduce", "ends", 1, columns * shape.hidden_size * FLOAT32_BYTES)


def _data_traffic(work: Pass, stage: int) -> Iterator[Traffic]:
    """Yield the number of microbatches, the sum of metrics and of gradients, and new weights."""
    layout = work.layout
    yield Traffic("all_gather", "data", 2, SIZE_BYTES, is_object=True)
    if stage == layout.pipeline - 1 and work.num_metrics:
        yield Traffic("all_reduce", "data", 1, 2 * 8 * work.num_metrics)
    if not work.trains:
        return
    held = stage_parameters(work.shape, layout, work.is_scorer)[stage].total
    yield Traffic("all_reduce", "data", 1, 4)
    if layout.distributed_optimizer:
        yield Traffic("reduce_scatter", "data", 1, held * FLOAT32_BYTES)
        yield Traffic("all_gather", "data", 1, held * work.value_bytes / layout.data)
    else:
        yield Traffic("all_reduce", "data", 1, held * FLOAT32_BYTES)


def swap_traffic(shape: ModelShape, layout: Layout, value_bytes: int) -> Iterator[Traffic]:
    """Yield how a student's tensors are put together, one after the other, for its engine."""
    cut = 7 + 3 * shape.has_qkv_bias
    heads = 1 if shape.is_tied else 2
    norms = shape.num_layers * shape.norm_parameters + shape.hidden_size
    num_cut = shape.num_layers * cut + heads
    num_whole = shape.num_layers * (2 + 2 * shape.has_qk_norm) + 1
    columns = -(-shape.vocab_size // layout.tensor)
    layers = shape.num_layers * (
        shape.attention_matrices + shape.attention_biases + shape.ffn_parameters
    )
    share = layers // layout.tensor + heads * columns * shape.hidden_size
    if layout.pipeline > 1:
        told = (num_cut + num_whole) // layout.pipeline * PLACE_BYTES
        yield Traffic("all_gather", "pipeline", 2, SIZE_BYTES + told, is_object=True)
        num_bytes = (share + norms) * value_bytes
        yield Traffic("broadcast", "pipeline", num_cut + num_whole, num_bytes)
    if layout.tensor > 1:
        yield Traffic("all_gather", "tensor", num_cut, share * value_bytes)


def rollout_bytes(num_prompts: float, group_size: int, lengths: Lengths) -> float:
    """Return the bytes of groups as a pickle, within a few for each group."""
    given = lengths.prompt + lengths.response
    return num_prompts * (given * GIVEN_BYTES + group_size * lengths.response * SAMPLED_BYTES)


def rollout_traffic(layout: Layout, num_bytes: float) -> Iterator[Traffic]:
    """Yield how groups reach the ranks of a model, and at most how they change their data rank.

    num_bytes: of a data rank's groups.
    """
    if layout.model_group > 1:
        yield Traffic("broadcast", "model", 2, SIZE_BYTES + num_bytes, is_object=True)
    if layout.data > 1:
        yield Traffic("all_gather", "data", 2, SIZE_BYTES, is_object=True)
        yield Traffic("all_to_all", "data", 1, SIZE_BYTES * layout.data)
        yield Traffic("all_to_all", "data", 1, num_bytes, is_object=True)


def _num_stored(shape: ModelShape, layout: Layout, stage: int, is_scorer: bool) -> int:
    """Return how many weights of a rank of a pipeline stage a checkpoint has."""
    is_first, is_last = stage == 0, stage == layout.pipeline - 1
    # Query, key and value are one tensor; gate and up are two.
    of_layer = 7 + shape.has_qkv_bias + 2 * shape.has_qk_norm
    has_head = is_scorer or not (shape.is_tied and is_first)
    return shape.num_layers // layout.pipeline * of_layer + is_first + is_last * (1 + has_head)


def _num_states(layout: Layout, value_bytes: int) -> int:
    """Return how many states a checkpoint has of each weight: moments, and main weights."""
    return 2 + (layout.distributed_optimizer or value_bytes < FLOAT32_BYTES)


class Entries(NamedTuple):
    """Tensors, states and boxes of states that one rank has something to do with.

    copied: what all data ranks hold. own: what this one alone does.
    """

    copied: float
    own: float

    def of_rank(self, layout: Layout) -> float:
        """Return what it writes, or reads."""
        return self.copied / layout.data + self.own


def _entries(stored: int, layout: Layout, value_bytes: int) -> Entries:
    """Return what a rank with so many weights holds of a model and its optimizer."""
    num_states = _num_states(layout, value_bytes)
    if not layout.distributed_optimizer:
        return Entries(stored * (1 + num_states), 0)
    return Entries(stored, num_states * (stored / layout.data + 2 * BOXES))


def save_traffic(
    shapes: Sequence[tuple[ModelShape, bool]], layout: Layout, value_bytes: int, stage: int
) -> Iterator[Traffic]:
    """Yield what a rank of a pipeline stage sends when a checkpoint is written.

    Tensors go to the disk alone. shapes: of the models, and whether each is a scorer.
    """
    count = len(shapes)
    stored = [_num_stored(shape, layout, stage, is_scorer) for shape, is_scorer in shapes]
    entries = [_entries(each, layout, value_bytes) for each in stored]
    held = HELD_BYTES * sum(map(sum, entries))
    told = held + WRITTEN_BYTES * sum(each.of_rank(layout) for each in entries)
    # Draft, digests, publication; written and listed, for each model.
    yield Traffic("barrier", "world", 3 + 2 * count, 0)
    # Whether numbers are finite, and digests; how much is told of what follows.
    calls = 2 * (count + 1) + 3 * count
    yield Traffic("all_gather", "world", calls, SIZE_BYTES * calls, is_object=True)
    # What every rank has, is going to write, and where in its files it is: to the first rank alone.
    yield Traffic("gather", "world", 3 * count, told, is_object=True)
    yield Traffic("broadcast", "world", count, 4 * count)
    if layout.data > 1:
        # Which of the copies writes what.
        yield Traffic("all_gather", "data", 2 * count, held, is_object=True)


def listed_bytes(shape: ModelShape, layout: Layout, value_bytes: int) -> int:
    """Return at most what the list of a model's tensors takes, which every rank reads."""
    listed = 0.0
    for stage in range(layout.pipeline):
        stored = _num_stored(shape, layout, stage, is_scorer=True)
        of_stage = _entries(stored, layout, value_bytes)
        listed += layout.tensor * (of_stage.copied + of_stage.own * layout.data)
    return round(listed) * LISTED_BYTES


def load_traffic(
    shapes: Sequence[tuple[ModelShape, bool]], layout: Layout, value_bytes: int, stage: int
) -> Iterator[Traffic]:
    """Yield what a rank of a pipeline stage sends when a checkpoint is read.

    shapes: of the models, and whether each is a scorer.
    """
    count = len(shapes)
    stored = [_num_stored(shape, layout, stage, is_scorer) for shape, is_scorer in shapes]
    entries = [_entries(each, layout, value_bytes) for each in stored]
    told = sum(READ_BYTES * each.of_rank(layout) + READS_BYTES for each in entries)
    # What every rank is going to read, to the first and back; of copies, objects and then tensors.
    plans = count * (2 if layout.data > 1 else 1)
    yield Traffic("gather", "world", plans, told, is_object=True)
    yield Traffic("broadcast", "world", plans, SIZE_BYTES * plans)
    yield Traffic("scatter", "world", 2 * plans, told * layout.world, is_object=True)
    yield Traffic("all_gather", "world", 3 * plans, SIZE_BYTES * 3 * plans, is_object=True)
    if layout.data == 1:
        return
    objects = (SIZE_BYTES + OBJECTS_BYTES) * count
    yield Traffic("all_gather", "world", 2 * count, objects, is_object=True)
    # Which of the copies reads what; and what it has read.
    held = HELD_BYTES * sum(map(sum, entries))
    yield Traffic("all_gather", "data", 2 * count, held, is_object=True)
    each = value_bytes
    if not layout.distributed_optimizer:
        each += _num_states(layout, value_bytes) * FLOAT32_BYTES
    weights = [stage_parameters(shape, layout, scores)[stage].total for shape, scores in shapes]
    num_copied = round(sum(each.copied for each in entries))
    yield Traffic("broadcast", "data", num_copied, each * sum(weights))
