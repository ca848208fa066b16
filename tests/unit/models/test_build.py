"""The models on one rank against transformers; tests/distributed has the other layouts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models.build import (
    build_language_model,
    build_scorer,
    padded_vocab_size,
)
from megatron_gad.models.families import load_hf_config
from megatron_gad.models.hf_weights import export_hf_weights, load_hf_weights
from tests.tiny import YARN_ROPE, hub_tensors, make_hf_folder

MODELS = [
    ("llama", {}),
    ("llama", {"tie": True, "num_key_value_heads": 4}),
    ("mistral", {}),
    ("mistral", {"head_dim": 24, "num_key_value_heads": 1, "sliding_window": 64}),
    ("mistral", {"rope_parameters": YARN_ROPE}),
    ("qwen2", {}),
    ("qwen2", {"rope_parameters": YARN_ROPE}),
    ("qwen2", {"rope_parameters": {**YARN_ROPE, "attention_factor": 0.7, "beta_fast": 2.0}}),
    ("qwen2", {"tie": True}),
    ("qwen3", {}),
    ("qwen3", {"num_key_value_heads": 1}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": False, "tie": True}),
    ("qwen3_moe", {"norm_topk_prob": False, "num_experts_per_tok": 1}),
    ("qwen3_moe", {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [1]}),
    ("mixtral", {}),
]

PLAIN = ComputeConfig()


def random_tokens(num_rows: int = 3, num_tokens: int = 11) -> Tensor:
    """Draw token ids [B, T]."""
    return torch.randint(97, (num_rows, num_tokens), generator=torch.Generator().manual_seed(1))


def loaded(folder: Path, compute: ComputeConfig = PLAIN) -> torch.nn.Module:
    """Build and load a language model on this rank."""
    config = load_hf_config(folder)
    chunks = build_language_model(config, ParallelConfig(), compute)
    load_hf_weights(chunks, config, folder)
    return chunks[0]


def call(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Run a model over rows padded on the right."""
    return model(tokens, torch.arange(tokens.shape[1]).expand_as(tokens), None)


def gradients(model: torch.nn.Module, folder: Path, tokens: Tensor) -> dict[str, Tensor]:
    """Return d(sum of next-token losses) by Hugging Face name."""
    logits = call(model, tokens)[:, :-1]
    torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
    ).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.data.copy_(parameter.grad)
    return dict(export_hf_weights([model], load_hf_config(folder)))


@pytest.mark.parametrize(("family", "fields"), MODELS)
def test_logits_and_gradients_equal_those_of_transformers(
    tmp_path: Path, family: str, fields: dict[str, Any]
) -> None:
    folder = make_hf_folder(tmp_path, family, **fields)
    model, reference = loaded(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokens = random_tokens()
    expected = reference(tokens).logits
    torch.testing.assert_close(call(model, tokens), expected, atol=1e-5, rtol=1e-5)
    loss = torch.nn.functional.cross_entropy(
        expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
    )
    loss.backward()
    computed = gradients(model, folder, tokens)
    gradient_of = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    expected_gradients = hub_tensors(reference, gradient_of)
    assert computed.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(computed[name], gradient, atol=1e-5 * scale, rtol=1e-4)


def test_padding_on_the_right_changes_nothing_before_it(tmp_path: Path) -> None:
    model = loaded(make_hf_folder(tmp_path))
    tokens = random_tokens()
    padded = torch.nn.functional.pad(tokens, (0, 5))
    torch.testing.assert_close(call(model, padded)[:, :11], call(model, tokens))


@pytest.mark.parametrize("granularity", ["full", "selective"])
def test_recomputing_activations_keeps_the_gradients(tmp_path: Path, granularity: Any) -> None:
    folder = make_hf_folder(tmp_path)
    kept = gradients(loaded(folder), folder, random_tokens())
    compute = ComputeConfig(recompute_granularity=granularity)
    recomputed = gradients(loaded(folder, compute), folder, random_tokens())
    for name, gradient in kept.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=0)


def test_bf16_stays_near_float32(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path)
    tokens = random_tokens()
    exact = call(loaded(folder), tokens)
    rounded = call(loaded(folder, ComputeConfig(bf16=True)), tokens)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    error = (rounded.float() - exact).abs().mean()
    reference_error = (reference(tokens).logits.float() - exact).abs().mean()
    assert rounded.dtype == torch.bfloat16
    assert error < 1.5 * reference_error


def test_a_scorer_applies_its_head_to_the_last_hidden_states(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path)
    config = load_hf_config(folder)
    chunks = build_scorer(config, ParallelConfig(), ComputeConfig(), head_std=0.3, seed=7)
    load_hf_weights(chunks, config, folder)
    tokens = random_tokens()
    reference = AutoModelForCausalLM.from_pretrained(folder).model
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(7)) * 0.3
    expected = (reference(tokens).last_hidden_state @ head.t()).squeeze(-1)
    scores = call(chunks[0], tokens)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


class AllocatedRows(TorchDispatchMode):
    """Counts the new tensors with some number of rows."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.empty.memory_format and result.shape[0] == self.num_rows:
            self.count += 1
        return result


def test_a_scorer_allocates_the_vocabulary_once_for_the_embedding(tmp_path: Path) -> None:
    config = load_hf_config(make_hf_folder(tmp_path))
    with AllocatedRows(97) as language_model:
        build_language_model(config, ParallelConfig(), PLAIN)
    with AllocatedRows(97) as scorer:
        build_scorer(config, ParallelConfig(), ComputeConfig())
    assert (language_model.count, scorer.count) == (2, 1)


def test_the_vocabulary_is_padded_to_a_multiple_of_the_tensor_ranks(tmp_path: Path) -> None:
    config = load_hf_config(make_hf_folder(tmp_path))
    sizes = [
        padded_vocab_size(config, ParallelConfig(tensor_model_parallel_size=n)) for n in (1, 2)
    ]
    assert sizes == [97, 98]


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        ({"tensor_model_parallel_size": 4}, "= 4 does not divide num_key_value_heads = 2"),
        ({"pipeline_model_parallel_size": 3}, "size = 3 does not divide num_hidden_layers = 2"),
        (
            {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
            "2 x virtual_pipeline_model_parallel_size 2 = 4 does not divide num_hidden_layers = 2",
        ),
        (
            {"virtual_pipeline_model_parallel_size": 2},
            "pipeline_model_parallel_size = 1; make",
        ),
        ({"sequence_parallel": True}, "tensor_model_parallel_size = 1; make it 2"),
    ],
)
def test_an_impossible_layout_is_refused_by_name(
    tmp_path: Path, layout: dict[str, Any], named: str
) -> None:
    config = load_hf_config(make_hf_folder(tmp_path))
    with pytest.raises(ValueError, match=named):
        build_language_model(config, ParallelConfig(**layout), PLAIN)


def test_units_of_recompute_that_do_not_divide_the_layers_are_refused(tmp_path: Path) -> None:
    config = load_hf_config(make_hf_folder(tmp_path))
    compute = ComputeConfig(recompute_granularity="full", recompute_num_layers=3)
    with pytest.raises(ValueError, match="recompute_num_layers = 3 does not divide the 2 layers"):
        build_language_model(config, ParallelConfig(), compute)


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        ({"expert_model_parallel_size": 3}, "= 3 does not divide the 4 experts of a layer"),
        ({"expert_tensor_parallel_size": 3}, "= 3 .* does not divide moe_intermediate_size = 20"),
        ({"tensor_model_parallel_size": 2}, "needs sequence_parallel = True"),
    ],
)
def test_an_impossible_layout_of_experts_is_refused_by_name(
    tmp_path: Path, layout: dict[str, Any], named: str
) -> None:
    config = load_hf_config(make_hf_folder(tmp_path, "qwen3_moe"))
    with pytest.raises(ValueError, match=named):
        build_language_model(config, ParallelConfig(**layout), PLAIN)
