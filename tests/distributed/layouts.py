"""The models and layouts that test_models.py and its worker agree on, for four ranks."""

from megatron_gad.models.build import ModelOptions

HEAD_STD, SEED = 0.3, 5
CASES = ("qwen2", "qwen2-tied", "qwen3", "scorer-qwen2", "scorer-qwen3")
LAYOUTS = {
    "dp4": ModelOptions(),
    "tp2": ModelOptions(tensor_model_parallel_size=2),
    "tp2-sp": ModelOptions(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ModelOptions(pipeline_model_parallel_size=2, recompute_granularity="full"),
    "tp2-pp2-sp": ModelOptions(
        tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True
    ),
    "pp2-vpp2": ModelOptions(
        pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2
    ),
    "tp2-cp2": ModelOptions(tensor_model_parallel_size=2, context_parallel_size=2),
}
