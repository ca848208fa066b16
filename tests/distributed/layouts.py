"""The models and layouts that test_models.py and its worker agree on, for four ranks."""

from megatron_gad.config.layout import ParallelConfig

HEAD_STD, SEED = 0.3, 5
CASES = ("mistral-yarn", "qwen2", "qwen2-tied", "qwen3", "scorer-qwen2")
MIXTURE_CASES = ("qwen3_moe", "mixed", "mixtral", "scorer-qwen3_moe")
LAYOUTS = {
    "tp2": ParallelConfig(tensor_model_parallel_size=2),
    "tp2-sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "tp2-pp2-sp": ParallelConfig(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True
    ),
    "pp2-vpp2": ParallelConfig(
        pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2
    ),
    "tp2-cp2": ParallelConfig(tensor_model_parallel_size=2, context_parallel_size=2),
}
# Of mixtures of experts, which need sequence parallelism beside tensor parallelism.
MIXTURE_LAYOUTS = {
    "ep4": ParallelConfig(expert_model_parallel_size=4),
    "tp2-ep2-sp": ParallelConfig(
        tensor_model_parallel_size=2, expert_model_parallel_size=2, sequence_parallel=True
    ),
    "tp2-ep2-etp1-sp": ParallelConfig(
        tensor_model_parallel_size=2,
        expert_model_parallel_size=2,
        expert_tensor_parallel_size=1,
        sequence_parallel=True,
    ),
    "tp2-etp1-sp": ParallelConfig(
        tensor_model_parallel_size=2, expert_tensor_parallel_size=1, sequence_parallel=True
    ),
    "pp2-ep2": ParallelConfig(
        pipeline_model_parallel_size=2,
        expert_model_parallel_size=2,
    ),
    "tp2-cp2-ep2-sp": ParallelConfig(
        tensor_model_parallel_size=2,
        context_parallel_size=2,
        expert_model_parallel_size=2,
        sequence_parallel=True,
    ),
    "pp2-vpp2-ep2": ParallelConfig(
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=2,
        expert_model_parallel_size=2,
    ),
}
# Layouts of pipelines at which the layers are recomputed too.
RECOMPUTED = ("pp2", "pp2-ep2")
ALL_LAYOUTS = LAYOUTS | MIXTURE_LAYOUTS
EVERYWHERE = [(case, layout) for layout in LAYOUTS for case in CASES]
EVERYWHERE += [(case, layout) for layout in MIXTURE_LAYOUTS for case in MIXTURE_CASES]
