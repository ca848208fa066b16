"""Which layouts a number of ranks and a model's shape allow, with the arithmetic where they do not.

The one home of these rules: the configuration's checks, the model builder and the process groups
ask here.
"""

from collections.abc import Iterator

from transformers import PretrainedConfig

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models.families import mixture_of
from megatron_gad.models.mixtures import Mixture

# What a rank has a part of -> the sizes whose product has to divide it.
DIVIDED = {
    "num_attention_heads": ("tensor_model_parallel_size",),
    "num_key_value_heads": ("tensor_model_parallel_size",),
    "intermediate_size": ("tensor_model_parallel_size",),
    "num_hidden_layers": ("pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"),
}
WORLD = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")


def model_group_size(layout: ParallelConfig) -> int:
    """Return the ranks that work on one share of the data: TP x PP x CP."""
    return _product(layout, WORLD)


def has_whole_copies_together(layout: ParallelConfig) -> bool:
    """Say whether the ranks of one copy of the model follow each other, and so share hosts.

    Then all GPUs of a copy can serve the engine that its first rank owns. Megatron allows it where
    dense layers and experts have as many data ranks; else the data ranks of a stage follow.
    """
    tensor = layout.tensor_model_parallel_size
    expert_tensor = layout.expert_tensor_parallel_size or tensor
    per_stage = tensor * layout.context_parallel_size
    return per_stage == expert_tensor * layout.expert_model_parallel_size


def ranks_beside_the_first(layout: ParallelConfig, world_size: int, host_size: int) -> int:
    """Return how many ranks of one copy of the model are on the host of its first rank."""
    block = layout.tensor_model_parallel_size * layout.context_parallel_size
    num_stages = max(1, layout.pipeline_model_parallel_size)
    stride = block if has_whole_copies_together(layout) else world_size // num_stages
    ranks = (stage * stride + n for stage in range(num_stages) for n in range(block))
    return sum(rank < host_size for rank in ranks)


def data_parallel_size(layout: ParallelConfig, world_size: int) -> int:
    """Return the data ranks of a layout, 1 where it does not divide the world."""
    size = model_group_size(layout)
    return world_size // size if size > 0 and world_size % size == 0 else 1


def world_problem(layout: ParallelConfig, world_size: int, table: str = "") -> str | None:
    """Return what is wrong with a layout in a world of this many ranks, None if nothing is.

    table: what stands before the keys in the message, as "parallel.".
    """
    size = model_group_size(layout)
    if size < 1 or world_size % size == 0:
        return None
    return (
        f"{table}{_arithmetic(layout, WORLD)} does not divide the {world_size} ranks of this run; "
        f"start a multiple of {size} ranks (torchrun --nproc-per-node {size}), or make the sizes "
        "smaller; a dry run plans for other ranks with --world-size"
    )


def expert_world_problem(layout: ParallelConfig, world_size: int, table: str = "") -> str | None:
    """Return what is wrong with the layout of experts in a world of this many ranks."""
    expert, pipeline = layout.expert_model_parallel_size, layout.pipeline_model_parallel_size
    tensor = expert_tensor_size(layout)
    size = expert * tensor * pipeline
    if size < 1 or world_size % size == 0:
        return None
    return (
        f"{table}expert_model_parallel_size {expert} x expert_tensor_parallel_size {tensor} x "
        f"pipeline_model_parallel_size {pipeline} = {size} does not divide the {world_size} ranks "
        "of this run; start a multiple of it (torchrun --nproc-per-node), or make the sizes "
        "smaller: expert_tensor_parallel_size = 1 holds experts whole"
    )


def expert_tensor_size(layout: ParallelConfig) -> int:
    """Return the ranks that share one expert: as many as share a layer, if not given."""
    return layout.expert_tensor_parallel_size or layout.tensor_model_parallel_size


def size_problems(layout: ParallelConfig, table: str = "") -> Iterator[str]:
    """Yield what is wrong with the sizes by themselves."""
    if layout.sequence_parallel and layout.tensor_model_parallel_size == 1:
        yield (
            f"{table}sequence_parallel = True shards between tensor-parallel ranks, but "
            "tensor_model_parallel_size = 1; make it 2 or more, or leave sequence_parallel out"
        )
    virtual = layout.virtual_pipeline_model_parallel_size
    if virtual is None:
        return
    if virtual < 2:
        yield (
            f"{table}virtual_pipeline_model_parallel_size = {virtual} is not allowed: it is the "
            "chunks of layers that a pipeline rank holds; make it 2 or more, or leave it out"
        )
    if layout.pipeline_model_parallel_size == 1:
        yield (
            f"{table}virtual_pipeline_model_parallel_size = {virtual} interleaves the chunks of "
            "several pipeline ranks, but pipeline_model_parallel_size = 1; make it 2 or more, or "
            "leave virtual_pipeline_model_parallel_size out"
        )


def shape_problems(
    layout: ParallelConfig, shape: PretrainedConfig, table: str = "", model: str = "the model"
) -> Iterator[str]:
    """Yield one message per dimension of a model that the layout does not divide.

    shape: of the model, from load_hf_config.
    model: what the message calls the model.
    """
    mixture = mixture_of(shape)
    if mixture is not None:
        yield from _expert_problems(layout, mixture, table, model)
    for dimension, keys in DIVIDED.items():
        if dimension == "intermediate_size" and mixture is not None and all(mixture.sparse_layers):
            continue  # no layer has it, or it is the width of an expert
        size, ranks = getattr(shape, dimension), _product(layout, keys)
        if ranks > 0 and size % ranks:
            divisors = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0 and n <= 64)
            yield (
                f"{table}{_arithmetic(layout, keys)} does not divide {dimension} = {size} of "
                f"{model}; use one of {divisors}"
            )


def _expert_problems(
    layout: ParallelConfig, mixture: Mixture, table: str, model: str
) -> Iterator[str]:
    """Yield why the experts of a model cannot be shared out like that."""
    expert, num_experts = layout.expert_model_parallel_size, mixture.num_experts
    if expert > 0 and num_experts % expert:
        yield (
            f"{table}expert_model_parallel_size = {expert} does not divide the {num_experts} "
            f"experts of a layer of {model}; use a divisor of {num_experts}"
        )
    tensor, width = expert_tensor_size(layout), mixture.expert_width
    if tensor > 0 and width % tensor:
        yield (
            f"{table}expert_tensor_parallel_size = {tensor} (as tensor_model_parallel_size where "
            f"it is not given) does not divide {mixture.width_key} = {width} of {model}; use a "
            "divisor of it, 1 holds experts whole"
        )
    if layout.tensor_model_parallel_size > 1 and not layout.sequence_parallel:
        yield (
            f"{table}tensor_model_parallel_size = {layout.tensor_model_parallel_size} with the "
            f"experts of {model} needs {table}sequence_parallel = True, so that a token is sent "
            "to them once; set it"
        )


def layer_problems(
    layout: ParallelConfig,
    compute: ComputeConfig,
    shape: PretrainedConfig,
    table: str = "",
    model: str = "the model",
) -> Iterator[str]:
    """Yield what counts more layers than a pipeline rank has, or others than it can take.

    table: what stands before the keys of compute, as "compute.".
    """
    size, num_layers = layout.pipeline_model_parallel_size, shape.num_hidden_layers
    chunks = layout.virtual_pipeline_model_parallel_size or 1
    if size < 1 or chunks < 1 or num_layers % (size * chunks):
        return  # shape_problems says so
    unit, held = compute.recompute_num_layers, num_layers // (size * chunks)
    is_uniform = (compute.recompute_granularity, compute.recompute_method) == ("full", "uniform")
    if is_uniform and unit > 0 and held % unit:
        yield (
            f"{table}recompute_num_layers = {unit} does not divide the {held} layers of a pipeline "
            f"stage of {model}; use a divisor of it, or {table}recompute_method = 'block'"
        )


def _product(layout: ParallelConfig, keys: tuple[str, ...]) -> int:
    product = 1
    for key in keys:
        product *= getattr(layout, key) or 1
    return product


def _arithmetic(layout: ParallelConfig, keys: tuple[str, ...]) -> str:
    """Write the product of the sizes that are not 1 out, as "a 2 x b 3 = 6"; one alone "a = 2"."""
    sizes = {key: getattr(layout, key) for key in keys if getattr(layout, key) not in (None, 1)}
    if len(sizes) == 1:
        return "".join(f"{key} = {size}" for key, size in sizes.items())
    product = " x ".join(f"{key} {size}" for key, size in sizes.items())
    return f"{product} = {_product(layout, keys)}"
