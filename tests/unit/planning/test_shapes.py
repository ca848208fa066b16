"""Parameter counts against published ones and against transformers' own models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from megatron_gad.planning.layout import Layout, layout_problems, stage_parameters
from megatron_gad.planning.published import PUBLISHED as BY_NAME
from megatron_gad.planning.shapes import read_shape, shape_from_config

KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size"),
)


def hf(model_type: str, sizes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """Return what matters of a config.json; sizes in the order of KEYS."""
    return {"model_type": model_type, **dict(zip(KEYS, sizes, strict=True)), **more}


# The counts are those of the safetensors files on the Hub and of llama.cpp's n_params.
PUBLISHED = {
    "Qwen2.5-3B": (
        hf("qwen2", (2048, 11008, 36, 16, 2, 151936), tie_word_embeddings=True),
        3_085_938_688,
    ),
    "Qwen2.5-7B": (hf("qwen2", (3584, 18944, 28, 28, 4, 152064)), 7_615_616_512),
    "Qwen2.5-14B": (hf("qwen2", (5120, 13824, 48, 40, 8, 152064)), 14_770_033_664),
    "Qwen2.5-32B": (hf("qwen2", (5120, 27648, 64, 40, 8, 152064)), 32_763_876_352),
    "Llama-3.1-8B": (hf("llama", (4096, 14336, 32, 32, 8, 128256)), 8_030_261_248),
    "Llama-3.2-3B": (
        hf("llama", (3072, 8192, 28, 24, 8, 128256), head_dim=128, tie_word_embeddings=True),
        3_212_749_824,
    ),
    "Qwen3-0.6B": (
        hf("qwen3", (1024, 3072, 28, 16, 8, 151936), head_dim=128, tie_word_embeddings=True),
        596_049_920,
    ),
    "Qwen3-30B-A3B": (
        hf(
            *("qwen3_moe", (2048, 6144, 48, 32, 4, 151936)),
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
            decoder_sparse_step=1,
            mlp_only_layers=[],
        ),
        30_532_122_624,
    ),
    "Mixtral-8x7B": (
        hf(
            *("mixtral", (4096, 14336, 32, 32, 8, 32000)),
            num_local_experts=8,
            num_experts_per_tok=2,
        ),
        46_702_792_704,
    ),
}
# The same, of the models that the planner knows by name.
COUNTS = {
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "SmolLM2-135M": 134_515_008,
}
SMALL: dict[str, Any] = dict(zip(KEYS, (32, 48, 4, 4, 2, 97), strict=True))
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def mixture(**more: Any) -> Qwen3MoeConfig:
    """Return a small Qwen3-MoE."""
    return Qwen3MoeConfig(**(SMALL | EXPERTS | more))


SMALL_CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama_tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL),
    "qwen2_tied": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, head_dim=24),
    "qwen3_moe": mixture(head_dim=24),
    "qwen3_moe_mixed": mixture(decoder_sparse_step=2),
    "qwen3_moe_dense": mixture(mlp_only_layers=[0, 3]),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4),
}


def count_with_transformers(config: PretrainedConfig, is_scorer: bool) -> int:
    """Return the parameters of a model that transformers builds without memory."""
    with torch.device("meta"):
        model = (AutoModel if is_scorer else AutoModelForCausalLM).from_config(config)
    return sum(p.numel() for p in model.parameters()) + is_scorer * config.hidden_size


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_count_of_a_real_model_is_the_published_one(name: str) -> None:
    config, published = PUBLISHED[name]
    assert shape_from_config(config).num_parameters() == published


def test_a_published_model_is_known_by_its_name() -> None:
    assert {name: read_shape(Path(name)).num_parameters() for name in BY_NAME} == COUNTS
    for path in ("Qwen/Qwen2.5-7B-Instruct@main", "models/Qwen2.5-7B-Instruct"):
        assert read_shape(Path(path)).num_parameters() == COUNTS["Qwen2.5-7B"]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("is_scorer", [False, True])
def test_a_real_model_built_by_transformers_has_as_many(name: str, is_scorer: bool) -> None:
    sizes, _ = PUBLISHED[name]
    kinds: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    kinds |= {"qwen3_moe": Qwen3MoeConfig, "mixtral": MixtralConfig}
    config = kinds[sizes["model_type"]](**sizes)
    counted = shape_from_config(sizes).num_parameters(is_scorer)
    assert counted == count_with_transformers(config, is_scorer)


@pytest.mark.parametrize("name", SMALL_CONFIGS)
@pytest.mark.parametrize("is_scorer", [False, True])
def test_every_option_of_a_family_counts_as_in_transformers(name: str, is_scorer: bool) -> None:
    config = SMALL_CONFIGS[name]
    counted = shape_from_config(config.to_dict()).num_parameters(is_scorer)
    assert counted == count_with_transformers(config, is_scorer)


def test_of_a_mixture_only_the_chosen_experts_are_multiplied() -> None:
    shape = shape_from_config(PUBLISHED["Qwen3-30B-A3B"][0])
    # Published as 3.35 B active with the embedding, which is looked up, and with norms.
    norms = 48 * (2 * 2048 + 2 * 128) + 2048
    assert shape.multiplied_parameters() == 3_353_032_704 - 151936 * 2048 - norms


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("is_scorer", [False, True])
def test_shards_add_up_to_the_model_and_its_copies(name: str, is_scorer: bool) -> None:
    shape = shape_from_config(PUBLISHED[name][0])
    layout = Layout(tensor=2, pipeline=4)
    ranks = sum(stage.total for stage in stage_parameters(shape, layout, is_scorer)) * 2
    # Both tensor ranks hold norms, routers and the scalar head; a tied embedding is there twice.
    copies = shape.num_layers * shape.norm_parameters + shape.hidden_size
    copies += shape.num_moe_layers * shape.router_parameters
    if is_scorer:
        copies += shape.hidden_size
    elif shape.is_tied:
        copies += shape.embedding_parameters
    assert ranks == shape.num_parameters(is_scorer) + copies


def test_experts_are_cut_as_the_other_layers_unless_it_is_said() -> None:
    shape = shape_from_config(PUBLISHED["Qwen3-30B-A3B"][0])
    every_expert = 48 * 128 * 3 * 2048 * 768
    for layout, shards in (
        (Layout(tensor=2, data=4, expert=4), 8),
        (Layout(tensor=2, data=4, expert=4, expert_tensor=1), 4),
        (Layout(tensor=2, data=4), 2),
        (Layout(tensor=2, data=4, expert_tensor=1), 1),
    ):
        (stage,) = stage_parameters(shape, layout, is_scorer=False)
        assert stage.expert == every_expert / shards
        # 8 ranks hold an expert 8 / shards times.
        assert layout.expert_copies == 8 / shards
        assert layout_problems(shape, layout) == []
    assert layout_problems(shape, Layout(tensor=4, data=2, expert=4, sequence_parallel=True)) == [
        "number of experts' shards 16 does not divide the 8 tensor x data ranks"
    ]


def test_a_layout_that_does_not_divide_a_shape_is_told_by_its_numbers() -> None:
    shape = shape_from_config(PUBLISHED["Qwen2.5-3B"][0])
    problems = "; ".join(layout_problems(shape, Layout(tensor=4, pipeline=8)))
    assert "tensor parallel size 4 does not divide the 2 key-value heads" in problems
    assert "pipeline parallel size 8 does not divide the 36 layers" in problems


def test_a_config_file_or_its_folder_is_read(tmp_path: Path) -> None:
    config, published = PUBLISHED["Qwen2.5-7B"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_shape(tmp_path).num_parameters() == published
    assert read_shape(tmp_path / "config.json").num_parameters() == published


def test_what_cannot_be_planned_is_told(tmp_path: Path) -> None:
    config, _ = PUBLISHED["Llama-3.1-8B"]
    with pytest.raises(ValueError, match=r"model_type = 'gpt2' cannot be planned; use one of 'll"):
        shape_from_config(config | {"model_type": "gpt2"})
    with pytest.raises(ValueError, match="attention_bias = True"):
        shape_from_config(config | {"attention_bias": True})
    with pytest.raises(ValueError, match="vocab_size = None"):
        shape_from_config({key: config[key] for key in config if key != "vocab_size"})
    with pytest.raises(ValueError, match="--model-config"):
        read_shape(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be read from no/such-model .*Qwen2\.5-7B"):
        read_shape(Path("no/such-model"))
