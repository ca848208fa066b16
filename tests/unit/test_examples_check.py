"""Every recipe under examples/ can be started: its file is read and passes all checks."""

import json
import re
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen2Config

from examples.smollm2.model import config as smollm2_config
from megatron_gad.checks.run import check_config
from megatron_gad.config.run import RunConfig
from megatron_gad.config.toml import read_toml
from megatron_gad.planning.describe import describe_run
from megatron_gad.planning.devices import Assumptions, device_of
from megatron_gad.planning.from_config import configured_layout, lengths_of, plan_request
from megatron_gad.planning.of_run import engine_use, free_servers
from megatron_gad.planning.search import find_plans, plan_layout
from megatron_gad.planning.shapes import read_shape
from tests.tiny_tokenizer import make_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
KEYS_OF_TIME = (r"signal=B:USR1@(\d+)", r"time=(\d+):(\d+):(\d+)")
RECIPES = sorted(EXAMPLES.glob("*/*.toml"))
# Whose shape a recipe is checked with, where its student is not a tiny one of its own.
SIZES = {
    "lmsys_qwen2.5_7b/run.toml": "7B",
    "lmsys_qwen2.5_7b/one_gpu.toml": "0.5B",
    "lmsys_qwen2.5_7b/two_nodes.toml": "14B",
    "smollm2/run.toml": "135M",
    "smollm2/run_cpu.toml": "135M",
}


def make_model(folder: Path, shape: PretrainedConfig) -> Path:
    """Write a folder with a model's shape and a small tokenizer.

    Its weights are a header before a hole of their size, which takes no room on the disk.
    """
    shape.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape).to(torch.bfloat16)
    tied = set(model.all_tied_weights_keys)
    header: dict[str, object] = {}
    end = 0
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders with the shapes of real models, by their names."""
    qwen_7b = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
    )
    qwen_half = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )
    qwen_14b = Qwen2Config(
        vocab_size=152_064,
        hidden_size=5120,
        intermediate_size=13_824,
        num_hidden_layers=48,
        num_attention_heads=40,
        num_key_value_heads=8,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
    )
    shapes = {"7B": qwen_7b, "14B": qwen_14b, "0.5B": qwen_half, "135M": smollm2_config()}
    folder = tmp_path_factory.mktemp("models")
    return {name: make_model(folder / name, shape) for name, shape in shapes.items()}


@pytest.fixture
def qwen_7b(models: dict[str, Path]) -> Path:
    """Return a folder with the shape of Qwen2.5-7B-Instruct."""
    return models["7B"]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the columns of the paper's data set, 600 rows."""
    file = tmp_path_factory.mktemp("data") / "train.parquet"
    turns = [{"role": "user", "content": "Which way do you face?"}]
    columns = {"content": [turns] * 600, "teacher_response": ["north"] * 600}
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


def name_of(recipe: Path) -> str:
    """Return the example's folder and the file in it."""
    return f"{recipe.parent.name}/{recipe.name}"


def with_files(config: RunConfig, model: Path, data: Path) -> RunConfig:
    """Put real files where a recipe names files that a download or an earlier step makes."""
    has_eval = bool(config.data.eval_path)
    return replace(
        config,
        student=replace(config.student, path=str(model)),
        sglang=replace(config.sglang, python=sys.executable),  # not looked into
        data=replace(config.data, path=str(data), eval_path=str(data) if has_eval else ""),
    )


def num_ranks(config: RunConfig) -> int:
    """Return the fewest ranks that a recipe's layout needs."""
    parallel = config.parallel
    return parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size


def test_there_is_a_recipe_for_every_example_of_a_run() -> None:
    assert {path.parent.name for path in RECIPES} >= {"tiny", "quickstart", "lmsys_qwen2.5_7b"}


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_every_recipe_passes_its_checks(
    recipe: Path, models: dict[str, Path], parquet: Path
) -> None:
    model = models[SIZES.get(name_of(recipe), "7B")]
    config = with_files(read_toml(recipe, RunConfig), model, parquet)
    assert check_config(config, num_ranks(config)) == []


@pytest.mark.parametrize(
    ("recipe", "model", "num_gpus", "slower"),
    [
        ("run.toml", "Qwen2.5-7B", 8, 1.0),
        ("run.toml", "Qwen2.5-7B", 16, 1.01),
        ("two_nodes.toml", "Qwen2.5-14B", 16, 1.02),
        ("one_gpu.toml", "Qwen2.5-0.5B", 1, 1.0),
    ],
)
def test_the_papers_recipes_have_the_fastest_layout_that_is_found(
    recipe: str, model: str, num_gpus: int, slower: float
) -> None:
    config = read_toml(EXAMPLES / "lmsys_qwen2.5_7b" / recipe, RunConfig)
    shape, device = read_shape(Path(model)), device_of("h100")
    lengths = lengths_of(config.data, 150, 400)
    request = plan_request(config, (shape, shape), device, num_gpus, lengths, Assumptions())
    layout = configured_layout(config, num_gpus, False)
    ours = plan_layout(replace(request, engine=engine_use(config, request, layout)), layout, None)
    best = find_plans(replace(request, engine=free_servers(config)), layout)[0]
    assert ours.seconds <= slower * best.seconds


def test_the_papers_recipe_is_the_papers() -> None:
    config = read_toml(EXAMPLES / "lmsys_qwen2.5_7b" / "run.toml", RunConfig)
    assert config.stages == ("warmup", "adversarial")
    assert (config.warmup.epochs, config.adversarial.epochs) == (1, 2)
    assert config.warmup.discriminator_only_steps == 10
    for stage in (config.warmup, config.adversarial):
        assert (stage.prompts_per_step, stage.group_size) == (256, 8)
        assert (stage.student_lr, stage.discriminator_lr) == (None, None)
    optimizer = config.optimizer
    assert config.student.lr == config.discriminator.lr == 1e-6
    assert (optimizer.lr_decay_style, optimizer.weight_decay) == ("constant", 0.01)
    assert (optimizer.adam_beta1, optimizer.adam_beta2, optimizer.clip_grad) == (0.9, 0.999, 0.2)
    gad = config.gad
    assert (gad.kl_coef, gad.kl_estimator, gad.kl_in) == (0.001, "k3", "loss")
    assert (gad.discriminator_loss, gad.advantage, gad.clip_range) == ("bradley_terry", "grpo", 0.2)
    assert (config.data.max_prompt_tokens, config.data.max_response_tokens) == (2048, 1536)
    assert config.rollout.temperature == 0.8


def test_the_papers_recipe_is_planned_at_its_real_size(qwen_7b: Path, parquet: Path) -> None:
    recipe = EXAMPLES / "lmsys_qwen2.5_7b" / "run.toml"
    plan = describe_run(with_files(read_toml(recipe, RunConfig), qwen_7b, parquet), 16)
    assert "TP 2 x PP 1 x DP 8, sequence parallel, distributed optimizer" in plan
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
    watchdog = config.watchdog
    assert watchdog.phase_s > 0
    # Swap, sampling, discriminator, student, one save, and what lies between.
    longest = 6 * watchdog.phase_s
    assert longest <= int(warning[1]) < (3600 * hours + 60 * minutes + seconds) / 2
    adversarial = config.adversarial
    assert (adversarial.extra_discriminator_steps, adversarial.student_updates) == (0, 1)
    # What is lost with a node is a few steps, each of which may take that long.
    assert 1 <= config.checkpoint.save_interval <= 10
