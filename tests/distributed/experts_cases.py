"""What test_experts.py trains on one rank, and its worker on four at layouts with experts."""

from dataclasses import replace
from functools import partial

from megatron_gad.judging import judge
from megatron_gad.training.options import ParallelConfig
from tests.distributed.training_cases import STUDENT, Case, four_groups, policy_step
from tests.tiny_training import make_discriminator, make_student

TP2_PP2_SP = ParallelConfig(
    tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True
)
# What is left of the four ranks is data parallel; expert parallel ranks are among those.
LAYOUTS = {
    "dp4": ParallelConfig(),
    "ep2-dp4": ParallelConfig(expert_model_parallel_size=2),
    "tp2-ep2-sp-dp2": ParallelConfig(
        tensor_model_parallel_size=2, expert_model_parallel_size=2, sequence_parallel=True
    ),
    "tp2-ep2-etp1-sp-dp2": ParallelConfig(
        tensor_model_parallel_size=2,
        expert_model_parallel_size=2,
        expert_tensor_parallel_size=1,
        sequence_parallel=True,
    ),
    "tp2-etp1-sp-dp2": ParallelConfig(
        tensor_model_parallel_size=2, expert_tensor_parallel_size=1, sequence_parallel=True
    ),
    "pp2-ep2-dp2": ParallelConfig(pipeline_model_parallel_size=2, expert_model_parallel_size=2),
    "ep4-dp4": ParallelConfig(expert_model_parallel_size=4),
    "cp2-ep2-dp2": ParallelConfig(context_parallel_size=2, expert_model_parallel_size=2),
    "tp2-sp-cp2-ep2": ParallelConfig(
        tensor_model_parallel_size=2,
        sequence_parallel=True,
        context_parallel_size=2,
        expert_model_parallel_size=2,
    ),
    "tp2-sp-pp2": TP2_PP2_SP,
    "tp2-ep2-etp1-sp-pp2": replace(
        TP2_PP2_SP, expert_model_parallel_size=2, expert_tensor_parallel_size=1
    ),
    "tp2-sp-pp2-vpp2": replace(TP2_PP2_SP, virtual_pipeline_model_parallel_size=2),
    "pp2-vpp2-ep2-dp2": ParallelConfig(
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=2,
        expert_model_parallel_size=2,
    ),
}
# Experts and the rest share their optimizer's states out over different ranks.
LAYOUTS |= {
    f"{name}-distributed": replace(LAYOUTS[name], use_distributed_optimizer=True)
    for name in ("ep2-dp4", "cp2-ep2-dp2", "tp2-ep2-sp-dp2", "pp2-ep2-dp2")
}
CASES = {
    "policy": Case("qwen3_moe", make_student, STUDENT, policy_step),
    "bradley-terry": Case(
        "mixtral",
        make_discriminator,
        four_groups,
        partial(judge, kind="bradley_terry", split_groups=False),
    ),
}
# Where a checkpoint is saved, and where it is loaded.
RESUMED = {
    "tp2-ep2-sp-dp2": ("tp2-ep2-sp-dp2", "dp4", "tp2-ep2-etp1-sp-pp2"),
    "tp2-ep2-sp-dp2-distributed": (
        "tp2-ep2-sp-dp2-distributed",
        "ep2-dp4-distributed",
        "pp2-ep2-dp2-distributed",
    ),
}
