"""The command's dry run and the plan that it prints."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import to_toml
from megatron_gad.planning.describe import describe_run
from tests.tiny import make_hf_folder
from tests.tiny_run import make_run
from tests.tiny_tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Return a configuration without a mistake, its files beside it."""
    return make_run(tmp_path_factory.mktemp("run"))


def test_the_plan_tells_layout_models_stages_and_the_whole_configuration(good: RunConfig) -> None:
    config = replace(
        good,
        stages=("warmup", "adversarial"),
        parallel=replace(
            good.parallel,
            tensor_model_parallel_size=2,
            pipeline_model_parallel_size=2,
            virtual_pipeline_model_parallel_size=2,
            context_parallel_size=2,
        ),
        adversarial=replace(good.adversarial, steps=5, student_lr=3e-5),
    )
    plan = describe_run(config, world_size=8)
    assert "TP 2 x PP 2 x CP 2 x DP 1, VPP 2" in plan
    # Embedding and head 384 x 32 each; a layer 32 x 32 + 32 (q), 2 x (32 x 16 + 16) (k, v),
    # 32 x 32 (o), 3 x 32 x 48 (mlp), 2 x 32 (norms); the last norm 32.
    layer = 1024 + 32 + 2 * (512 + 16) + 1024 + 3 * 1536 + 64
    student = 2 * 384 * 32 + 2 * layer + 32
    assert f"{student:,} parameters" in plan
    assert f"{student - 384 * 32 + 32:,} parameters" in plan
    assert "anew for each response (student: context parallelism cuts every row" in plan
    assert "num_prompts 20" in plan
    assert "3 steps (1 epoch(s)) of 8 prompts x 8 samples" in plan
    assert "5 steps of 8 prompts x 8 samples, lr 3e-05, of the discriminator 1e-06" in plan
    assert plan.endswith(to_toml(config))


def test_the_plan_tells_what_an_evaluation_asks(good: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    row = {"id": 1, "prompt": "Be brief.", "checks": [{"check": "words", "at_most": 9}]}
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    own = replace(good.evaluation, interval=5, num_prompts=7, instructions=str(file))
    own = replace(own, judge_url="https://host/v1", judge_model="strict")
    data = replace(good.data, eval_path=good.data.path)
    plan = describe_run(replace(good, data=data, evaluation=own), 1)
    assert (
        "  evaluation     every 5 steps: up to 7 held-out prompts, 3 checkable instructions "
        f"({file}), up to 14 calls to the judge strict"
    ) in plan


def test_the_plan_tells_whose_prompts_are_shared(good: RunConfig) -> None:
    assert "once for the responses of a group (student, discriminator)" in describe_run(good, 1)
    alone = replace(good, compute=replace(good.compute, share_prompts=False))
    assert "(student: compute.share_prompts = false)" in describe_run(alone, 1)
    te = replace(good.compute, transformer_impl="transformer_engine", bf16=True)
    assert "(student: Transformer Engine's way was never compared on a GPU" in describe_run(
        replace(good, compute=te), 1
    )


def test_the_plan_tells_a_layout_of_the_discriminators_own(good: RunConfig) -> None:
    config = replace(
        good,
        parallel=replace(good.parallel, tensor_model_parallel_size=2),
        discriminator=replace(good.discriminator, tensor_model_parallel_size=1),
    )
    plan = describe_run(config, world_size=8)
    assert "TP 2 x PP 1 x DP 4" in plan
    assert "of the discriminator: TP 1 x PP 1 x DP 8" in plan


def test_the_plan_shows_the_first_row_as_the_models_read_it(good: RunConfig) -> None:
    """The prompt, the teacher's response and what ends it, token by token."""
    plan = [line.strip() for line in describe_run(good, world_size=1).splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(good.student.path)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "face west"}], tokenize=False, add_generation_prompt=True
    )
    start = plan.index("first prompt   28 tokens:") + 1
    end = plan.index("first response 3 tokens:")
    shown = "".join(plan[start:end]).replace("|<|", "\0<|").replace("|>|", "|>\0")
    shown = re.sub(r"(?<!<)\|(?!>)", "", shown).replace("\0", "").replace(r"\n", "\n")
    assert shown.replace(" ", "") == prompt.replace(" ", "")
    assert plan[end + 1] == "w|est|<|im_end|>"
    assert plan[end + 2].startswith("discriminator  reads the two behind each other, 31 tokens;")
    # The model's generation_config.json names id 1.
    assert "ends with      '<|im_end|>' (2); sampling also stops at '<|im_start|>' (1)" in plan


def test_a_long_row_is_shown_by_its_ends(good: RunConfig, tmp_path: Path) -> None:
    data = tmp_path / "long.jsonl"
    words = " ".join(f"x{number}" for number in range(40))
    line = json.dumps({"content": "face west", "teacher_response": words}) + "\n"
    data.write_text(8 * line)  # a step takes as many
    long = replace(good.data, path=str(data), max_response_tokens=200)
    prompt = replace(good, data=replace(long, max_prompt_tokens=50))
    plan = describe_run(prompt, world_size=1)
    ids = AutoTokenizer.from_pretrained(good.student.path)(words)["input_ids"]
    assert f"first response {len(ids) + 1} tokens:" in plan
    assert f"|... {len(ids) + 1 - 40 - 16} more ...|" in plan.replace("\n" + " " * 17, "")
    assert "<|im_end|>\n" in plan
    assert (
        max(map(len, plan.split("first response")[1].split("discriminator")[0].splitlines())) < 120
    )


def test_the_plan_shows_what_a_discriminator_reads_with_its_own_tokenizer(
    good: RunConfig, tmp_path: Path
) -> None:
    make_hf_folder(tmp_path, "llama", vocab_size=331, max_position_embeddings=256)
    plain = make_tokenizer(tmp_path, "llama3", vocab_size=330)
    own = replace(good.discriminator, path=str(tmp_path))
    plan = describe_run(replace(good, discriminator=own), world_size=1)
    assert "discriminator  reads the same texts with its own tokenizer and template: its" in plan
    asked: Any = plain.apply_chat_template(
        [{"role": "user", "content": "face west"}], add_generation_prompt=True, tokenize=False
    )
    size = len(plain(asked, add_special_tokens=False)["input_ids"])
    assert f"its prompt     {size} tokens:" in plan
    assert "its response   3 tokens:\n" + " " * 17 + "w|est|<|eot_id|>\n" in plan
    (tmp_path / "tokenizer.json").unlink()
    wide = make_hf_folder(tmp_path / "wide", vocab_size=384, max_position_embeddings=256)
    bare = replace(good, discriminator=replace(good.discriminator, path=str(wide)))
    assert f"; discriminator.path = '{wide}' holds no tokenizer\n" in describe_run(bare, 1)


def test_data_of_the_hub_is_shown_as_files_are_once_it_is_here(
    good: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(good.data.path, folder / "train.jsonl")
    as_files = describe_run(good, world_size=1)
    named = replace(good, data=replace(good.data, path=f"hub:{folder}"))
    plan = describe_run(named, world_size=1)
    rows = slice(plan.index(": num_rows"), plan.index("  residency"))
    start = as_files.index(": num_rows")
    assert plan[rows] == as_files[start : start + len(plan[rows])]
    away = replace(good, data=replace(good.data, path="hub:owner/nowhere"))
    plan = describe_run(away, world_size=1)
    assert "hub:owner/nowhere: downloaded when the run starts; unknown until then" in plan
    assert not Path(good.checkpoint.save).exists()


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "megatron_gad", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_dry_run_prints_the_plan_and_starts_nothing(good: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(good))
    done = run_command(str(file), "--dry-run", "--world-size", "2")
    assert (done.returncode, "TP 1 x PP 1 x DP 2" in done.stdout) == (0, True), done.stderr
    assert not Path(good.checkpoint.save).exists()


def test_a_dry_run_reads_all_weights_on_request(tmp_path: Path) -> None:
    config = make_run(tmp_path)
    file, weights = tmp_path / "run.toml", Path(config.student.path) / "model.safetensors"
    file.write_text(to_toml(config))
    tensors = load_file(weights)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    assert run_command(str(file), "--dry-run").returncode == 0
    done = run_command(str(file), "--dry-run", "--check-weights")
    assert done.returncode == 2
    assert "1 tensors hold values that are not finite: model.norm.weight;" in done.stderr
    done = run_command(str(file), "--check-weights")
    assert (done.returncode, "add --dry-run" in done.stderr) == (2, True)


def test_the_command_reports_all_violations_and_exits_with_2(
    good: RunConfig, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(good))
    done = run_command(
        str(file), "--adversarial.group-size", "1", "--rollout.max-total-tokens", "0"
    )
    assert done.returncode == 2
    assert "2 problem(s)" in done.stderr
    assert "adversarial.group_size = 1" in done.stderr
    assert "rollout.max_total_tokens = 0" in done.stderr
    assert not Path(good.checkpoint.save).exists()
