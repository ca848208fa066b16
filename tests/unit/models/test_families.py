"""Which models are taken, and what is read from their configuration."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config

from megatron_gad.models.families import (
    head_dim,
    inverse_frequencies,
    load_hf_config,
    softmax_scale,
)
from tests.tiny import CLASSES, LLAMA3_ROPE, YARN_ROPE, make_hf_folder


def config_folder(path: Path, family: str, **fields: object) -> Path:
    """Write a folder that holds a config.json only."""
    CLASSES[family][0](hidden_size=32, num_attention_heads=4, **fields).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("family", "width"),
    [("llama", 8), ("mistral", 8), ("qwen2", 8), ("qwen3", 24), ("qwen3_moe", 24), ("mixtral", 8)],
)
def test_each_family_is_recognised(tmp_path: Path, family: str, width: int) -> None:
    config = load_hf_config(make_hf_folder(tmp_path, family))
    assert config.model_type == family
    assert head_dim(config) == width


def test_plain_rotary_frequencies_are_powers_of_theta(tmp_path: Path) -> None:
    config = load_hf_config(config_folder(tmp_path, "qwen2"))
    expected = [10_000.0 ** (-2 * pair / 8) for pair in range(4)]
    assert inverse_frequencies(config).tolist() == pytest.approx(expected)


def test_llama3_scaling_slows_the_long_waves_only(tmp_path: Path) -> None:
    config = load_hf_config(config_folder(tmp_path, "llama", rope_parameters=LLAMA3_ROPE))
    expected = []
    for pair in range(4):
        frequency = LLAMA3_ROPE["rope_theta"] ** (-2 * pair / 8)
        turns_in_training = 16 * frequency / (2 * math.pi)
        # 4 turns or more: unchanged; 1 or fewer: a quarter; a straight line between.
        share = min(max((turns_in_training - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        expected.append(share * frequency + (1 - share) * frequency / 4.0)
    assert 0.25 < expected[0] < 1.0  # the first pair lies on the line
    assert inverse_frequencies(config).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 5e5},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        LLAMA3_ROPE,
        YARN_ROPE,
    ],
    ids=lambda rope: rope["rope_type"],
)
@pytest.mark.parametrize("family", CLASSES)
def test_frequencies_are_those_of_the_model_of_transformers(
    tmp_path: Path, family: str, rope: dict[str, Any]
) -> None:
    # Without a width of heads in its config transformers builds no Mixtral with yarn.
    width: dict[str, Any] = {"head_dim": 8} if family == "mixtral" else {}
    config = load_hf_config(make_hf_folder(tmp_path, family, rope_parameters=rope, **width))
    model = CLASSES[family][1](config)
    rotary = model.model.rotary_emb
    assert torch.equal(inverse_frequencies(config), rotary.inv_freq)
    scale = softmax_scale(config) or head_dim(config) ** -0.5
    assert scale == pytest.approx(rotary.attention_scaling**2 * head_dim(config) ** -0.5)


def test_yarn_scales_the_scores_by_the_logarithm_of_its_factor(tmp_path: Path) -> None:
    config = load_hf_config(config_folder(tmp_path, "qwen2", rope_parameters=YARN_ROPE))
    assert softmax_scale(config) == pytest.approx((0.1 * math.log(4.0) + 1.0) ** 2 / math.sqrt(8))


@pytest.mark.parametrize("window", [64, 65])
def test_a_window_that_holds_every_position_is_none(tmp_path: Path, window: int) -> None:
    shape = {"max_position_embeddings": 64, "sliding_window": window}
    for family, fields in (
        ("mistral", shape),
        ("qwen2", {**shape, "use_sliding_window": True, "max_window_layers": 1}),
    ):
        assert load_hf_config(config_folder(tmp_path / family, family, **fields))


def test_a_config_without_what_its_rotary_scaling_needs_is_refused(tmp_path: Path) -> None:
    config_folder(tmp_path, "qwen2", rope_parameters=YARN_ROPE)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"factor": 4.0,', ""))
    with pytest.raises(ValueError, match=r"config\.json cannot be read \(.*'factor'"):
        load_hf_config(tmp_path)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["Infinity", "3", "true", '["float32"]', '{"text": "float32"}'])
def test_a_dtype_that_is_no_name_is_refused(tmp_path: Path, key: str, value: str) -> None:
    file = config_folder(tmp_path, "qwen2") / "config.json"
    fields = json.loads(file.read_text())
    fields.pop("dtype", None)
    file.write_text(f'{{"{key}": {value}, {json.dumps(fields)[1:]}')
    with pytest.raises(ValueError, match=rf"cannot be read \({key} = .* is no name"):
        load_hf_config(tmp_path)


def test_another_family_is_refused_with_the_supported_ones(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type = 'gpt2'.*'llama'.*'qwen2'.*'qwen3'"):
        load_hf_config(tmp_path)


@pytest.mark.parametrize(
    ("family", "fields", "named"),
    [
        ("llama", {"attention_bias": True}, "attention_bias = True"),
        ("qwen3", {"attention_bias": True}, "attention_bias = True"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("qwen2", {"attention_dropout": 0.1}, r"attention_dropout = 0\.1"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "layer_types = 'full_attention, sliding_attention'",
        ),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type = 'dynamic'.*'llama3'",
        ),
        ("mixtral", {"sliding_window": 8}, "sliding_window = 8"),
        (
            "mistral",
            {"sliding_window": 63, "max_position_embeddings": 64},
            "sliding_window = 63 .* set max_position_embeddings to its size in config.json",
        ),
        ("mixtral", {"rope_parameters": YARN_ROPE}, "'mixtral' model needs .* add head_dim = 8 to"),
        ("mixtral", {"router_jitter_noise": 0.1}, r"router_jitter_noise = 0\.1"),
        ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok = 1.*no gradient"),
        ("qwen3_moe", {"num_experts": 4}, "num_experts_per_tok = 8 is not between 1 and the 4"),
        ("qwen3_moe", {"decoder_sparse_step": 99}, "decoder_sparse_step.*no layer with experts"),
    ],
)
def test_an_option_that_cannot_be_built_is_refused_by_name(
    tmp_path: Path, family: str, fields: dict[str, object], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        load_hf_config(config_folder(tmp_path, family, **fields))
