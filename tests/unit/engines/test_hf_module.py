"""Building, filling and emptying the Hugging Face module."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_gad.engines.hf_module import (
    allocate_weights,
    build_module,
    copy_weights,
    holds_weights,
    release_weights,
)
from tests.tiny import hub_tensors, make_hf_folder

CPU = torch.device("cpu")


def weights_of(folder) -> dict[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return hub_tensors(model, dict(model.named_parameters()))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "mixtral"])
@pytest.mark.parametrize("tie", [False, True])
def test_a_filled_module_computes_what_transformers_loads(tmp_path, family, tie):
    folder = make_hf_folder(tmp_path, family, tie=tie)
    model = build_module(folder, torch.float32)
    assert not holds_weights(model)
    allocate_weights(model, CPU)
    copy_weights(model, weights_of(folder).items())
    ids = torch.arange(20)[None] % 90
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, reference(input_ids=ids).logits)


@pytest.mark.parametrize("tie", [False, True])
def test_a_module_that_was_emptied_can_be_filled_again(tmp_path, tie):
    folder = make_hf_folder(tmp_path, "llama", tie=tie)
    weights = weights_of(folder)
    model = build_module(folder, torch.float32)
    allocate_weights(model, CPU)
    copy_weights(model, weights.items())
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        release_weights(model)
        assert {p.device.type for p in model.parameters()} == {"meta"}
        allocate_weights(model, CPU)
        copy_weights(model, reversed(weights.items()))
        assert torch.equal(model(input_ids=ids).logits, before)


def test_weights_are_converted_to_the_dtype_of_the_module(tmp_path):
    folder = make_hf_folder(tmp_path)
    model = build_module(folder, torch.bfloat16)
    allocate_weights(model, CPU)
    weights = weights_of(folder)
    copy_weights(model, weights.items())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name].bfloat16()), name


def test_every_problem_with_the_weights_is_named_at_once(tmp_path):
    model = build_module(make_hf_folder(tmp_path / "one"), torch.float32)
    allocate_weights(model, CPU)
    weights = weights_of(tmp_path / "one")
    weights.pop("model.norm.weight")
    weights["model.norm.bias"] = torch.zeros(32)
    weights["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(8)
    given = [*weights.items(), ("lm_head.weight", weights["lm_head.weight"])]
    with pytest.raises(ValueError) as error:
        copy_weights(model, given)
    message = str(error.value)
    assert message.startswith("4 problems with the weights given to Qwen2ForCausalLM: ")
    assert "model.norm.weight is missing" in message
    assert "model.norm.bias is unexpected" in message
    assert "model.layers.1.self_attn.q_proj.bias has the shape (8,), not (32,)" in message
    assert "lm_head.weight came twice" in message


def test_the_output_layer_of_a_tied_model_is_unexpected(tmp_path):
    model = build_module(make_hf_folder(tmp_path, tie=True), torch.float32)
    allocate_weights(model, CPU)
    weights = weights_of(tmp_path)
    assert "lm_head.weight" not in weights
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    with pytest.raises(ValueError, match=r"1 problems.*lm_head\.weight is unexpected"):
        copy_weights(model, weights.items())


def test_wrong_weights_are_still_read_to_their_end(tmp_path):
    model = build_module(make_hf_folder(tmp_path), torch.float32)
    allocate_weights(model, CPU)
    read: list[str] = []

    def stream():
        for name, tensor in [("nonsense", torch.zeros(1)), *weights_of(tmp_path).items()]:
            read.append(name)
            yield name, tensor

    with pytest.raises(ValueError, match="nonsense is unexpected"):
        copy_weights(model, stream())
    assert read[1:] == list(weights_of(tmp_path))
