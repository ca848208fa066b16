"""The benchmark's arithmetic by hand, and its whole way on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.step_arithmetic import (
    SHAPES,
    Measured,
    Rows,
    device_named,
    planned_training_bytes,
    table,
    training_flops,
    utilisation,
)
from megatron_gad.planning.shapes import shape_from_config

TINY = shape_from_config({"model_type": "qwen2", **SHAPES["tiny"]})
# Query and output 64 x 64, key and value 64 x 32 each; gate, up and down 64 x 128; two layers.
LAYERS = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
ROWS = Rows(count=4, micro=2, prompt=6, response=10)


def test_the_shapes_have_the_parameters_that_their_names_say() -> None:
    sizes = {"0.5b": 494_032_768, "1.5b": 1_543_714_304, "7b": 7_615_616_512}
    for name, size in sizes.items():
        shape = shape_from_config({"model_type": "qwen2", **SHAPES[name]})
        assert shape.num_parameters() == size


def test_operations_are_three_times_those_of_the_forward() -> None:
    """16 tokens a row give 136 pairs that attend; 10 of them are responses."""
    attention = 2 * 4 * 64 * 136 * 4
    student = 2 * LAYERS * 64 + 2 * 512 * 64 * 40 + attention
    assert training_flops(TINY, ROWS, is_scorer=False) == 3 * student
    scorer = 2 * LAYERS * 64 + 2 * 64 * 64 + attention
    assert training_flops(TINY, ROWS, is_scorer=True) == 3 * scorer


def test_utilisation_is_the_share_of_the_cards_peak() -> None:
    h100 = device_named("NVIDIA H100 80GB HBM3")
    assert h100 is not None and h100.bf16_flops == 989.4e12
    measured = Measured("7b", "bf16", "train student", seconds=2.0, flops=989.4e12)
    assert utilisation(measured, h100) == pytest.approx(0.5)
    fp8 = Measured("7b", "fp8 delayed", "train student", seconds=2.0, flops=989.4e12)
    assert utilisation(fp8, h100) == pytest.approx(0.25, rel=1e-3)
    assert utilisation(measured, device_named("NVIDIA GeForce RTX 4090")) is None
    assert device_named("NVIDIA A100-SXM4-80GB") is not None


def test_the_plan_holds_both_models_and_the_activations_of_one() -> None:
    states = sum(TINY.num_parameters(is_scorer) for is_scorer in (False, True)) * 18
    planned = [planned_training_bytes(TINY, ROWS, "bf16", scorer, 8) for scorer in (False, True)]
    # The student's also hold 8 bytes of 512 columns for 8 tokens, and the head's gradient twice.
    assert planned[0] - planned[1] == 8 * 512 * 8 + 2 * 512 * 64 * 2
    assert planned[1] > states


def test_the_table_has_a_dash_where_nothing_is_known() -> None:
    line = Measured("7b", "bf16", "swap", seconds=0.5, nbytes=2_000_000_000, peak_bytes=2**31)
    assert table([line], None).splitlines()[-1] == (
        "| 7b | bf16 | swap | 0.5 | - | - | 4.00 | 2.00 | - |"
    )


def test_the_whole_way_runs_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "lines.json"
    small = ["--prompts", "2", "--group-size", "2", "--prompt-tokens", "4"]
    small += ["--response-tokens", "5", "--micro-batch-size", "3", "--repeats", "1"]
    command = [sys.executable, "-m", "benchmarks.gpu_step", "--device", "cpu", "--shapes", "tiny"]
    done = subprocess.run(
        [*command, *small, "--json", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {line["phase"]: line for line in json.loads(file.read_text())["lines"]}
    assert list(found) == ["train student", "train discriminator", "swap", "sample"]
    assert found["train student"]["tokens"] == 4 * 9
    assert found["train discriminator"]["tokens"] == 6 * 9
    assert found["swap"]["nbytes"] == 2 * TINY.num_parameters()
    assert found["sample"]["tokens"] == 4 * 5
    assert all(line["seconds"] > 0 and line["mfu"] is None for line in found.values())
    assert "| tiny | bf16 | train student |" in done.stdout


def test_without_cuda_the_benchmark_says_what_to_do() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_step", "--shapes", "8b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--shapes 8b: not one of 0.5b, 1.5b, 7b, tiny" in done.stderr
