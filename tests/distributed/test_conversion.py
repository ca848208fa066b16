"""Weights pass between Hugging Face folders and Megatron checkpoints without a change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from examples.quickstart.tokenizer import END, SPECIAL_TOKENS
from tests.distributed import conversion_worker
from tests.e2e import tiny_run
from tests.ranks import run_on_ranks
from tests.tiny import make_hf_folder
from tests.tiny_tokenizer import make_tokenizer
from tools.convert_checkpoint import main

TP2PP2 = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
TP4 = ["--tensor-model-parallel-size", "4"]
SHAPE = {"num_hidden_layers": 4, "num_key_value_heads": 4}
# 97 rows of the embedding: padded to 98 by two tensor-parallel ranks, to 100 by four.
CASES = {
    "tied": ("qwen2", {"tie": True}, "student"),
    "qwen3": ("qwen3", {}, "student"),
    "llama": ("llama", {}, "student"),
    "scorer": ("qwen2", {}, "discriminator"),
}


def make_scorer(folder: Path) -> None:
    """Make a language model's folder one of a sequence classifier with a random head."""
    generator = torch.Generator().manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.score.weight.data.copy_(torch.randn(1, model.config.hidden_size, generator=generator))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in CASE/, through CASE-megatron/ written at TP2 PP2, to CASE-tp4/."""
    folder = tmp_path_factory.mktemp("conversion")
    commands = []
    for case, (family, overrides, model) in CASES.items():
        source, between = str(folder / case), str(folder / f"{case}-megatron")
        make_hf_folder(source, family, **SHAPE, **overrides)
        make_tokenizer(Path(source))
        if model == "discriminator":
            make_scorer(Path(source))
        shared = ["--model", model, "--verify"]
        commands.append(["--from-hf", source, "--to-megatron", between, *TP2PP2, *shared])
        back = str(folder / f"{case}-tp4")
        commands.append(["--from-megatron", between, "--to-hf", back, *TP4, *shared])
    run_on_ranks(conversion_worker.main, 4, commands)
    return folder


def assert_same_weights(folder: Path, expected_folder: Path) -> None:
    """Compare two folders' tensors, bit for bit."""
    tensors = load_file(folder / "model.safetensors")
    expected = load_file(expected_folder / "model.safetensors")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("case", CASES)
def test_weights_written_at_tp2_pp2_come_back_at_tp4(converted: Path, case: str) -> None:
    assert_same_weights(converted / f"{case}-tp4", converted / case)


@pytest.mark.parametrize("case", CASES)
def test_weights_written_at_tp2_pp2_come_back_on_one_rank(
    converted: Path, case: str, tmp_path: Path
) -> None:
    between = converted / f"{case}-megatron" / "iter_0000000"
    command = ["--from-megatron", str(between), "--to-hf", str(tmp_path / "hf")]
    assert main([*command, "--model", CASES[case][2], "--verify"]) == 0
    assert_same_weights(tmp_path / "hf", converted / case)


def test_a_runs_checkpoint_becomes_what_the_run_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--stages", "warmup", "--warmup.steps", "2", "--export", "student", "discriminator"]
    flags += ["--warmup.prompts-per-step", "2", "--warmup.discriminator-only-steps", "0"]
    # Weights are saved whole, so one run says it for interleaved chunks and shared rows.
    flags += ["--pipeline-model-parallel-size", "2", "--virtual-pipeline-model-parallel-size", "2"]
    flags += ["--context-parallel-size", "2", "--use-distributed-optimizer"]
    shutil.copytree(tiny_run.assets(), tmp_path / "run/assets")
    (tmp_path / "run/assets/student/generation_config.json").unlink()
    tiny_run.run(tmp_path / "run", *flags, num_ranks=4)
    command = ["--from-megatron", str(tmp_path / "run"), "--to-hf"]
    assert main([*command, str(tmp_path / "student")]) == 0
    layout = ["--pipeline-model-parallel-size", "2", "--model", "discriminator"]
    run_on_ranks(main, 2, [*command, str(tmp_path / "discriminator"), *layout])
    for model in ("student", "discriminator"):
        assert_same_weights(tmp_path / model, tmp_path / f"run/{model}_hf")
        assert (tmp_path / model / "tokenizer.json").exists()
    for folder in (tmp_path / "student", tmp_path / "run/student_hf"):
        stops = json.loads((folder / "generation_config.json").read_text())
        assert stops == {"eos_token_id": SPECIAL_TOKENS.index(END)}
    lost = next((tmp_path / "run").glob("iter_*/student/*.distcp"))
    lost.unlink()
    assert f"lacks student/{lost.name}; copy" in refusal(capsys, *command, str(tmp_path / "again"))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A model in hf/, converted on one rank into megatron/."""
    make_hf_folder(tmp_path / "hf")
    command = ["--from-hf", str(tmp_path / "hf"), "--to-megatron", str(tmp_path / "megatron")]
    assert main(command) == 0
    return tmp_path


def test_bfloat16_weights_stay_bfloat16(tmp_path: Path) -> None:
    make_hf_folder(tmp_path / "float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "hf")
    between, back = str(tmp_path / "megatron"), str(tmp_path / "back")
    assert main(["--from-hf", str(tmp_path / "hf"), "--to-megatron", between, "--verify"]) == 0
    assert main(["--from-megatron", between, "--to-hf", back, "--verify"]) == 0
    assert_same_weights(tmp_path / "back", tmp_path / "hf")


@pytest.mark.parametrize("head", [torch.float32, torch.bfloat16])
def test_a_bfloat16_discriminator_keeps_a_float32_head(tmp_path: Path, head: torch.dtype) -> None:
    """As a run exports it; a bfloat16 one has the same values in float32."""
    make_hf_folder(tmp_path / "hf")
    make_scorer(tmp_path / "hf")
    file = tmp_path / "hf/model.safetensors"
    wanted = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    wanted["score.weight"] = load_file(file)["score.weight"].to(head)
    save_file(wanted, file, metadata={"format": "pt"})
    between, back = str(tmp_path / "megatron"), str(tmp_path / "back")
    there = ["--from-hf", str(tmp_path / "hf"), "--to-megatron", between]
    for command in (there, ["--from-megatron", between, "--to-hf", back]):
        assert main([*command, "--model", "discriminator", "--verify"]) == 0
    save_file(wanted | {"score.weight": wanted["score.weight"].float()}, file)
    assert_same_weights(tmp_path / "back", tmp_path / "hf")


def refusal(capsys: pytest.CaptureFixture, *command: str) -> str:
    """Run a command that has to be refused and return its message."""
    assert main(command) == 2
    return capsys.readouterr().err


def test_another_config_is_refused_with_names_and_shapes(
    written: Path, capsys: pytest.CaptureFixture
) -> None:
    other = make_hf_folder(
        written / "other", "qwen3", vocab_size=512, num_hidden_layers=4, intermediate_size=64
    )
    back = str(written / "back")
    message = refusal(
        capsys,
        *("--from-megatron", str(written / "megatron"), "--to-hf", back, "--hf-config", str(other)),
    )
    for part in (
        "decoder.layers.mlp.linear_fc1.weight is [2, 96, 32], the model has [4, 128, 32]",
        "decoder.layers.self_attention.linear_qkv.bias [2, 64] is not in the model",
        "decoder.layers.self_attention.q_layernorm.weight [4, 24] is missing",
        "embedding.word_embeddings.weight is [97, 32], the model has [512, 32]",
        f"{other}/config.json",
        "--hf-config",
    ):
        assert part in message
    assert not Path(back).exists()


def test_a_student_is_not_taken_for_a_discriminator(
    written: Path, capsys: pytest.CaptureFixture
) -> None:
    (written / "megatron/iter_0000000/student").rename(
        written / "megatron/iter_0000000/discriminator"
    )
    command = ("--from-megatron", str(written / "megatron"), "--to-hf", str(written / "back"))
    assert "holds discriminator, not 'student'" in refusal(capsys, *command)
    message = refusal(capsys, *command, "--model", "discriminator")
    assert "output_layer.weight is [97, 32], the model has [1, 32]" in message


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def _cut(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:16].contiguous()


def _halve(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_drop, "lacks 1 tensors of the 'qwen2' model: model.layers.1.mlp.up_proj.weight"),
        (_cut, "model.norm.weight has shape [16] where the model's config.json means [32]"),
        (_halve, "torch.float16 (as in model.norm.weight)"),
    ],
)
def test_wrong_weights_are_refused(
    damage: Callable[[dict], None], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = make_hf_folder(tmp_path / "hf") / "model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    command = ("--from-hf", str(tmp_path / "hf"), "--to-megatron", str(tmp_path / "megatron"))
    assert expected in refusal(capsys, *command)
    assert not (tmp_path / "megatron").exists()


def test_bad_flags_are_refused_with_the_remedy(
    written: Path, capsys: pytest.CaptureFixture
) -> None:
    hf, megatron = str(written / "hf"), str(written / "megatron")
    message = refusal(capsys, "--from-hf", hf, "--to-hf", "x")
    assert "given: --from-hf, --to-hf" in message
    message = refusal(capsys, "--from-hf", hf, "--to-megatron", "x", *TP2PP2)
    assert "needs 4 ranks, there are 1; start it with torchrun --nproc-per-node 4" in message
    message = refusal(capsys, "--from-hf", hf, "--to-megatron", megatron)
    assert "iter_0000000/student exists already" in message
    message = refusal(capsys, "--from-megatron", megatron, "--to-hf", hf)
    assert f"{hf} exists already" in message
    message = refusal(
        capsys, "--from-hf", hf, "--to-megatron", megatron, "--model", "discriminator"
    )
    assert "has no score.weight, so it is no discriminator" in message
    message = refusal(capsys, "--from-megatron", hf, "--to-hf", "x")
    assert f"{hf} has 0 iter_* folders and no latest_checkpointed_iteration.txt" in message
    (written / "hf").rename(written / "moved")
    message = refusal(capsys, "--from-megatron", megatron, "--to-hf", str(written / "back"))
    assert f"student.path = '{hf}'" in message and "--hf-config" in message
