"""Experts that cannot be shared out, or are none, are refused with the numbers."""

import json
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from megatron_gad.checks.run import check_config
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.models.layout_rules import model_group_size
from tests.distributed.experts_cases import LAYOUTS
from tests.tiny import make_hf_folder
from tests.tiny_run import make_run
from tests.tiny_tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return a configuration without a mistake and without experts."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def sparse(dense: RunConfig) -> RunConfig:
    """Return the same with a student of four experts of width 20 in each layer."""
    folder = Path(dense.student.path).parent / "mixture"
    make_hf_folder(folder, "qwen3_moe", vocab_size=384, max_position_embeddings=256)
    make_tokenizer(folder)
    return replace(dense, student=replace(dense.student, path=str(folder)))


def laid_out(config: RunConfig, **sizes: int | bool) -> RunConfig:
    """Return the configuration with another layout."""
    return replace(config, parallel=replace(config.parallel, **sizes))


def test_experts_that_can_be_shared_out_are_not_refused(
    dense: RunConfig, sparse: RunConfig
) -> None:
    assert check_config(laid_out(sparse, expert_model_parallel_size=4), world_size=4) == []
    both = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    whole = laid_out(sparse, **both, expert_model_parallel_size=4, expert_tensor_parallel_size=1)
    assert check_config(whole, world_size=4) == []
    # A dense discriminator beside a student with experts.
    beside = replace(sparse.discriminator, path=dense.student.path)
    mixed = replace(laid_out(sparse, expert_model_parallel_size=2), discriminator=beside)
    assert check_config(mixed, world_size=2) == []


def test_a_dense_discriminator_of_its_own_layout_takes_no_sizes_for_experts_over(
    dense: RunConfig, sparse: RunConfig
) -> None:
    """EP 4 x TP 2 is more than the four ranks, and megatron-core divides them for any model."""
    student = laid_out(sparse, expert_model_parallel_size=4)
    own = replace(sparse.discriminator, tensor_model_parallel_size=2)
    beside = replace(student, discriminator=replace(own, path=dense.student.path))
    assert check_config(beside, world_size=4) == []
    assert beside.discriminator_layout(has_experts=False) == ParallelConfig(
        tensor_model_parallel_size=2, sequence_parallel=True
    )
    # With experts it does, and has to fit.
    assert any(
        "the discriminator's expert_model_parallel_size 4 x expert_tensor_parallel_size 2 x "
        "pipeline_model_parallel_size 1 = 8 does not divide the 4 ranks" in problem
        for problem in check_config(replace(student, discriminator=own), world_size=4)
    )
    # Where nothing else differs the student's groups serve both.
    shared = replace(student, discriminator=replace(sparse.discriminator, path=dense.student.path))
    assert shared.discriminator_layout(has_experts=False) == student.parallel
    assert check_config(shared, world_size=4) == []


def test_every_layout_of_four_ranks_is_trained_in_a_test_or_refused(
    sparse: RunConfig, tmp_path: Path
) -> None:
    shape: dict[str, Any] = {
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    make_hf_folder(tmp_path, "qwen3_moe", vocab_size=384, max_position_embeddings=256, **shape)
    make_tokenizer(tmp_path)
    config = replace(sparse, student=replace(sparse.student, path=str(tmp_path)))
    sizes = {
        "tensor_model_parallel_size": (1, 2, 4),
        "sequence_parallel": (False, True),
        "pipeline_model_parallel_size": (1, 2, 4),
        "virtual_pipeline_model_parallel_size": (None, 2),
        "context_parallel_size": (1, 2, 4),
        "expert_model_parallel_size": (1, 2, 4),
        # None is as many as cut other layers.
        "expert_tensor_parallel_size": (None, 1, 2, 4),
    }
    combinations = (dict(zip(sizes, values, strict=True)) for values in product(*sizes.values()))
    every = [ParallelConfig(**chosen) for chosen in combinations]
    allowed = {
        layout
        for layout in every
        if model_group_size(layout) <= 4
        and layout.expert_tensor_parallel_size != layout.tensor_model_parallel_size
        and not check_config(replace(config, parallel=layout), world_size=4)
    }
    assert allowed == {x for x in LAYOUTS.values() if not x.use_distributed_optimizer}


def test_experts_that_are_not_there_are_not_shared_out(dense: RunConfig) -> None:
    refused = "= 2 shares experts out, and its models have none; leave it out, or train a "
    refused += "Qwen3-MoE or Mixtral model"
    for key in ("expert_model_parallel_size", "expert_tensor_parallel_size"):
        assert check_config(laid_out(dense, **{key: 2}), world_size=2) == [
            f"parallel.{key} {refused}"
        ]


@pytest.mark.parametrize(
    ("sizes", "world_size", "expected"),
    [
        (
            {"expert_model_parallel_size": 8},
            8,
            "parallel.expert_model_parallel_size = 8 does not divide the 4 experts of a layer of "
            "student.path = '{path}'; use a divisor of 4",
        ),
        (
            {"expert_model_parallel_size": 2},
            1,
            "parallel.expert_model_parallel_size 2 x expert_tensor_parallel_size 1 x "
            "pipeline_model_parallel_size 1 = 2 does not divide the 1 ranks of this run; start a "
            "multiple of it (torchrun --nproc-per-node), or make the sizes smaller: "
            "expert_tensor_parallel_size = 1 holds experts whole",
        ),
        (
            {"expert_tensor_parallel_size": 8},
            8,
            "parallel.expert_tensor_parallel_size = 8 (as tensor_model_parallel_size where it is "
            "not given) does not divide moe_intermediate_size = 20 of student.path = '{path}'; use "
            "a divisor of it, 1 holds experts whole",
        ),
        (
            {"tensor_model_parallel_size": 2},
            2,
            "parallel.tensor_model_parallel_size = 2 with the experts of student.path = '{path}' "
            "needs parallel.sequence_parallel = True, so that a token is sent to them once; set it",
        ),
    ],
)
def test_what_experts_do_not_allow_is_refused_with_the_arithmetic(
    sparse: RunConfig, sizes: dict[str, int], world_size: int, expected: str
) -> None:
    found = check_config(laid_out(sparse, **sizes), world_size)
    assert found == [expected.replace("{path}", sparse.student.path)]


def test_a_config_that_contradicts_itself_is_refused(sparse: RunConfig, tmp_path: Path) -> None:
    path = Path(sparse.student.path)
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(path / name)
    config = json.loads((path / "config.json").read_text()) | {"num_experts_per_tok": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    bad = replace(sparse, student=replace(sparse.student, path=str(tmp_path)))
    assert check_config(bad, world_size=1) == [
        f"student.path = '{tmp_path}' cannot be used: num_experts_per_tok = 5 is not between 1 and "
        "the 4 experts of the model; correct its config.json"
    ]


def test_layers_that_sglang_would_build_otherwise_are_refused(
    dense: RunConfig, tmp_path: Path
) -> None:
    make_hf_folder(
        tmp_path,
        *("qwen3_moe", 384),
        max_position_embeddings=256,
        num_hidden_layers=4,
        decoder_sparse_step=2,
        mlp_only_layers=[1],
    )
    make_tokenizer(tmp_path)
    student = replace(dense.student, path=str(tmp_path))
    sglang = replace(dense.sglang, python=sys.executable)
    served = replace(dense, student=student, sglang=sglang)
    assert check_config(served, world_size=1) == []
    served = replace(served, rollout=replace(served.rollout, engine="sglang"))
    assert check_config(served, world_size=1) == [
        f"student.path = {str(tmp_path)!r} has no experts in its layers [0, 1, 2], but SGLang "
        "builds all layers of this architecture with experts; sample with rollout.engine = "
        "'embedded'"
    ]
