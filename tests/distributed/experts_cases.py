"""What test_experts.py trains on one rank, and its worker on four at layouts with experts.

The layouts are all that four ranks allow, with sequence parallelism wherever layers are cut.
"""

from dataclasses import replace
from functools import partial

from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models.layout_rules import expert_tensor_size
from megatron_gad.stages.discriminator_step import judge
from tests.distributed.covering import covering
from tests.distributed.training_cases import STUDENT, Case, four_groups, policy_step
from tests.tiny_training import make_discriminator, make_student

# (tensor, pipeline, chunks of a pipeline rank, context): what is left of the four ranks is data
# parallel.
DENSE_SIZES = (
    (1, 1, None, 1),
    (2, 1, None, 1),
    (4, 1, None, 1),
    (1, 2, None, 1),
    (1, 2, 2, 1),
    (1, 4, None, 1),
    (1, 4, 2, 1),
    (1, 1, None, 2),
    (1, 1, None, 4),
    (2, 2, None, 1),
    (2, 2, 2, 1),
    (2, 1, None, 2),
    (1, 2, None, 2),
    (1, 2, 2, 2),
)
# (ranks that share the experts of a layer out, ranks that share one expert).
EXPERT_SIZES = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1))


def layout_of(
    dense: tuple[int, int, int | None, int], experts: tuple[int, int]
) -> tuple[str, ParallelConfig]:
    """Return a layout with its name: every size but 1, and the experts' where it is another."""
    (tensor, pipeline, chunks, context), (expert, expert_tensor) = dense, experts
    is_own = expert_tensor != tensor
    sizes = {
        "tp": tensor,
        "pp": pipeline,
        "vpp": chunks,
        "cp": context,
        "ep": expert,
        "dp": 4 // (tensor * pipeline * context),
    }
    parts = [f"{key}{size}" for key, size in sizes.items() if size not in (None, 1)]
    layout = ParallelConfig(
        tensor_model_parallel_size=tensor,
        sequence_parallel=tensor > 1,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=chunks,
        context_parallel_size=context,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=expert_tensor if is_own else None,
    )
    return "-".join([*parts, *([f"etp{expert_tensor}"] if is_own else [])]), layout


def shares_states(name: str, layout: ParallelConfig) -> bool:
    """Whether weights have copies, over which the distributed optimizer shares its states out.

    Experts cut otherwise than other layers make a difference to it where they alone have copies.
    """
    per_stage = 4 // layout.pipeline_model_parallel_size
    expert_ranks = layout.expert_model_parallel_size * expert_tensor_size(layout)
    if layout.tensor_model_parallel_size < per_stage:
        return "etp" not in name
    return expert_ranks < per_stage


LAYOUTS = dict(
    layout_of(dense, experts)
    for dense in DENSE_SIZES
    for experts in EXPERT_SIZES
    if 4 % (dense[1] * experts[0] * experts[1]) == 0
)
LAYOUTS |= {
    f"{name}-distributed": replace(layout, use_distributed_optimizer=True)
    for name, layout in LAYOUTS.items()
    if shares_states(name, layout)
}
COVERING = covering(LAYOUTS)
POLICY = Case("qwen3_moe", make_student, STUDENT, policy_step)
CASES = {
    "policy": POLICY,
    # With a layer for each of eight chunks.
    "policy-deep": replace(POLICY, folder="qwen3_moe-deep"),
    "bradley-terry": Case(
        "mixtral",
        make_discriminator,
        four_groups,
        partial(judge, kind="bradley_terry", split_groups=False),
    ),
}


def cases_of(layout: str) -> tuple[str, ...]:
    """Which cases run where: one everywhere, the other where experts are cut as all layers."""
    if layout == "pp4-vpp2":
        return ("policy-deep",)
    is_variant = "etp" in layout or layout.endswith("-distributed")
    return ("policy",) if is_variant else ("policy", "bradley-terry")


# Where a checkpoint is saved, and where it is loaded.
RESUMED = {
    "tp2-ep2-dp2": ("tp2-ep2-dp2", "dp4", "tp2-pp2-ep2-etp1"),
    "tp2-ep2-dp2-distributed": (
        "tp2-ep2-dp2-distributed",
        "ep2-dp4-distributed",
        "pp2-ep2-dp2-distributed",
    ),
}
