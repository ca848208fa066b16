"""Every recipe under examples/ can be started: its file is read and passes all checks."""

import json
import re
import struct
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from megatron_gad.checks.run import check_config
from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import read_toml
from megatron_gad.planning.describe import describe_run
from tests.tiny_tokenizer import make_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
KEYS_OF_TIME = (r"signal=B:USR1@(\d+)", r"time=(\d+):(\d+):(\d+)")
RECIPES = sorted(EXAMPLES.glob("*/run.toml"))


@pytest.fixture(scope="module")
def qwen_7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the shape of Qwen2.5-7B-Instruct and a small tokenizer.

    Its weights are a header before a hole of their size, which takes no room on the disk.
    """
    folder = tmp_path_factory.mktemp("qwen")
    config = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    header: dict[str, object] = {}
    end = 0
    for name, tensor in model.state_dict().items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the columns of the paper's data set, 600 rows."""
    file = tmp_path_factory.mktemp("data") / "train.parquet"
    turns = [{"role": "user", "content": "Which way do you face?"}]
    columns = {"content": [turns] * 600, "teacher_response": ["north"] * 600}
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


def with_files(config: RunConfig, model: Path, data: Path) -> RunConfig:
    """Put real files where a recipe names files that a download or an earlier step makes."""
    has_eval = bool(config.data.eval_path)
    return replace(
        config,
        student=replace(config.student, path=str(model)),
        data=replace(config.data, path=str(data), eval_path=str(data) if has_eval else ""),
    )


def num_ranks(config: RunConfig) -> int:
    """Return the fewest ranks that a recipe's layout needs."""
    parallel = config.parallel
    return parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size


def test_there_is_a_recipe_for_every_example_of_a_run() -> None:
    assert {path.parent.name for path in RECIPES} >= {"tiny", "quickstart", "lmsys_qwen2.5_7b"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_every_recipe_passes_its_checks(recipe: Path, qwen_7b: Path, parquet: Path) -> None:
    config = with_files(read_toml(recipe, RunConfig), qwen_7b, parquet)
    assert check_config(config, num_ranks(config)) == []


def test_the_papers_recipe_is_the_papers() -> None:
    config = read_toml(EXAMPLES / "lmsys_qwen2.5_7b" / "run.toml", RunConfig)
    assert config.stages == ("warmup", "adversarial")
    assert (config.warmup.epochs, config.adversarial.epochs) == (1, 2)
    assert config.warmup.discriminator_only_steps == 10
    for stage in (config.warmup, config.adversarial):
        assert (stage.prompts_per_step, stage.group_size) == (256, 8)
        assert (stage.student_lr, stage.discriminator_lr) == (None, None)
    for model in (config.student, config.discriminator):
        assert (model.lr, model.lr_decay_style, model.weight_decay) == (1e-6, "constant", 0.01)
        assert (model.adam_beta1, model.adam_beta2, model.clip_grad) == (0.9, 0.999, 0.2)
    gad = config.gad
    assert (gad.kl_coef, gad.kl_estimator, gad.kl_in) == (0.001, "k3", "loss")
    assert (gad.discriminator_loss, gad.advantage, gad.clip_range) == ("bradley_terry", "grpo", 0.2)
    assert (config.data.max_prompt_tokens, config.data.max_response_tokens) == (2048, 1536)
    rollout = config.rollout
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (0.8, 1.0, 0)


def test_the_papers_recipe_is_planned_at_its_real_size(qwen_7b: Path, parquet: Path) -> None:
    recipe = EXAMPLES / "lmsys_qwen2.5_7b" / "run.toml"
    plan = describe_run(with_files(read_toml(recipe, RunConfig), qwen_7b, parquet), 16)
    assert "TP 4 x PP 2 x DP 2, sequence parallel" in plan
    assert "7,615,616,512 parameters" in plan  # as its model card counts them: 7.61 billion
    assert "3 steps (1 epoch(s)) of 256 prompts x 8 samples, lr 1e-06" in plan
    assert "5 steps (2 epoch(s)) of 256 prompts x 8 samples, lr 1e-06" in plan


@pytest.mark.parametrize(
    "script", sorted(EXAMPLES.glob("*/slurm.sbatch")), ids=lambda p: p.parent.name
)
def test_a_jobs_warning_leaves_time_for_the_longest_step_and_a_checkpoint(script: Path) -> None:
    """Every phase may take until its deadline, once a step; the signal waits for the step's end."""
    config = read_toml(script.with_name("run.toml"), RunConfig)
    text = script.read_text()
    warning, limit = (re.search(f"(?m)^#SBATCH --{key}$", text) for key in KEYS_OF_TIME)
    assert warning is not None and limit is not None
    hours, minutes, seconds = map(int, limit.groups())
    deadlines = asdict(config.watchdog)
    del deadlines["start_s"]
    assert min(deadlines.values()) > 0
    assert sum(deadlines.values()) <= int(warning[1]) < (3600 * hours + 60 * minutes + seconds) / 2
    adversarial = config.adversarial
    assert (adversarial.extra_discriminator_steps, adversarial.student_updates) == (0, 1)
    # What is lost with a node is a few steps, each of which may take that long.
    assert 1 <= config.checkpoint.save_interval <= 10
