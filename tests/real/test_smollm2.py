"""SmolLM2-135M-Instruct through the whole program: ``make test-real``."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_gad.__main__ import main
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.evaluation.answers import answer
from tests.e2e.tiny_run import metrics
from tests.engines.sglang.servers import SERVER_PYTHON
from tests.ranks import run_on_ranks, statuses_of_ranks
from tests.real import layouts_worker
from tests.real.conftest import ANSWERED
from tools.convert_checkpoint import main as convert

pytestmark = pytest.mark.real
# Between float32 of the trainer and of an engine, in nats on a sampled token.
BOUND = 1e-3
RECIPE = Path(__file__).parents[2] / "examples/smollm2/run_cpu.toml"
SHORT = (
    *("--warmup.steps", "1", "--warmup.discriminator-only-steps", "0"),
    *("--warmup.prompts-per-step", "2", "--warmup.group-size", "2"),
    *("--adversarial.steps", "1", "--adversarial.prompts-per-step", "2"),
    *("--adversarial.group-size", "2", "--data.max-response-tokens", "16"),
    *("--no-bf16", "--save-interval", "0", "--no-tensorboard"),
)


def test_a_conversion_both_ways_changes_no_bit(assets: Path, tmp_path: Path) -> None:
    """--verify compares both copies with transformers."""
    between, back = str(tmp_path / "megatron"), tmp_path / "hf"
    source = assets / "bf16"
    assert convert(["--from-hf", str(source), "--to-megatron", between, "--verify"]) == 0
    assert convert(["--from-megatron", between, "--to-hf", str(back), "--verify"]) == 0
    expected = load_file(source / "model.safetensors")
    found = load_file(back / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.bfloat16, name
        assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)), name


@pytest.mark.parametrize("num_ranks", layouts_worker.LAYOUTS)
def test_a_step_on_several_ranks_is_that_of_plain_transformers(
    assets: Path, tmp_path: Path, num_ranks: int
) -> None:
    """The worker compares loss, gradient norm and weights, and fails with what differs."""
    run_on_ranks(layouts_worker.main, num_ranks, num_ranks, assets, tmp_path)


def test_greedy_answers_are_those_of_transformers(assets: Path) -> None:
    folder, questions = assets / "student", list(ANSWERED)[:4]
    conversations = [({"role": "user", "content": question},) for question in questions]
    sampling = SamplingConfig(max_new_tokens=24, temperature=0.0, stop_ids=(), num_samples=1)
    found = answer(folder, conversations, sampling)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    for question, text in zip(questions, found, strict=True):
        turns = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        whole = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]
        ids = whole[prompt["input_ids"].shape[1] :]
        assert text == tokenizer.decode(ids, skip_special_tokens=True), question


def run(assets: Path, save: Path, *flags: str) -> list[dict[str, Any]]:
    """Take a warm-up step and a step of the game, and return their metrics."""
    files = ("--student.path", str(assets / "student"), "--data.path", str(assets / "train.jsonl"))
    command = [str(RECIPE), *files, "--save", str(save), *SHORT, *flags]
    log = save.with_name(f"{save.name}.log")
    statuses = statuses_of_ranks(_command, 1, command, log=log, timeout_s=900)
    assert statuses == [0], log.read_text()[-4000:]
    return metrics(save)


def _command(arguments: list[str]) -> int:
    """Be the command, in a process of its own."""
    sys.argv[1:] = arguments
    return main()


def check_steps(steps: list[dict[str, Any]]) -> None:
    """Hold the two steps against what any such step has to be."""
    assert [step["stage"] for step in steps] == ["warmup", "adversarial"]
    for step in steps:
        assert step["engine/logprob_gap_max"] < BOUND
        for number in ("discriminator/loss", "discriminator/grad_norm", "student/grad_norm"):
            assert 0 < step[number] < math.inf, number
        assert 0 < step["response/length_mean"] <= 16


def test_a_run_with_the_embedded_engine(assets: Path, tmp_path: Path) -> None:
    check_steps(run(assets, tmp_path / "run"))


@pytest.mark.skipif(not SERVER_PYTHON.is_file(), reason="no .venv-sglang; see make test-sglang")
def test_a_run_with_a_real_server(assets: Path, tmp_path: Path) -> None:
    flags = ("--rollout.engine", "sglang", "--sglang.python", str(SERVER_PYTHON))
    limits = ("--sglang.server-args", "max_total_tokens", "4096")
    check_steps(run(assets, tmp_path / "run", *flags, *limits))
