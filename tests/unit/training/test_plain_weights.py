"""Plain tensors in place of parameters, as for those in FP8; here, on a CPU, for those in bf16."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.models.hf_weights import load_hf_weights
from megatron_gad.models.plain_weights import plain_weights
from megatron_gad.training.distributed_optimizer import set_main_parameters
from megatron_gad.training.parallel import Parallel
from tests.tiny_training import make_student, parameters, weights


def test_weights_are_rounded_once_and_main_weights_are_not(place: Parallel, qwen2: Path) -> None:
    layout = ParallelConfig(use_distributed_optimizer=True)
    student = make_student(qwen2, place, layout, ComputeConfig(bf16=True))
    for parameter in parameters(student):
        parameter.data.zero_()
    own = parameters(student)
    matrices = [parameter for parameter in own if parameter.dim() == 2]
    with plain_weights(student.modules_to_write(), is_away=lambda p: p.dim() == 2) as unrounded:
        assert {p.dtype for p in parameters(student) if p.dim() == 2} == {torch.float32}
        load_hf_weights(student.modules_to_write(), student.hf_config, qwen2)
    student.optimizer_to_write().reload_model_params()
    set_main_parameters(student.optimizer_to_write(), unrounded)

    assert all(a is b for a, b in zip(parameters(student), own, strict=True))
    source = load_file(qwen2 / "model.safetensors")
    for name, loaded in weights(student).items():
        assert torch.equal(loaded, source[name].bfloat16()), name
    assert set(unrounded) == set(matrices)
    # Gate lies over up; the other matrices of a layer are covered by the rounded ones above.
    (layer,) = [
        layer for layer in student.modules_to_read()[0].decoder.layers if layer.layer_number == 1
    ]
    fc1 = layer.mlp.linear_fc1.weight
    names = [f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up")]
    expected = torch.cat([source[name] for name in names])
    assert torch.equal(fc1.main_param.view_as(fc1), expected)
    assert not torch.equal(expected, expected.bfloat16().float())
    for parameter in matrices:
        assert torch.equal(parameter.main_param.bfloat16(), parameter.detach().flatten())
