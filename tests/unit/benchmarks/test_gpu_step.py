"""The benchmark's arithmetic by hand, and its whole way on a CPU."""

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import cast

import pytest

from benchmarks.gpu_phases import Bench, Case, Options, let_go_of_models, measure_case
from benchmarks.gpu_step import main
from benchmarks.step_arithmetic import (
    SHAPES,
    Measured,
    Rows,
    as_row,
    device_named,
    planned_engine_bytes,
    planned_training_bytes,
    training_flops,
    utilisation,
)
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.planning.shapes import shape_from_config
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from tests.tiny import make_hf_folder

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


def test_the_plan_holds_one_model_and_its_activations() -> None:
    planned = [planned_training_bytes(TINY, ROWS, "bf16", scorer, 8) for scorer in (False, True)]
    # The student's also hold 8 bytes of 512 columns for 8 tokens, and the head's gradient twice.
    # Its output layer is the embedding, where the scorer has 64 weights more.
    assert planned[0] - planned[1] == 8 * 512 * 8 + 2 * 512 * 64 * 2 - 64 * 18
    assert planned[1] > TINY.num_parameters(is_scorer=True) * 18


def test_sampling_needs_the_student_the_engines_weights_and_its_cache() -> None:
    # A token has 2 layers x 2 heads x 16 keys and as many values, of 2 bytes.
    expected = TINY.num_parameters() * (18 + 2) + 10 * 256
    assert planned_engine_bytes(TINY, "bf16", tokens=10) == expected


def test_the_table_has_a_dash_where_nothing_is_known() -> None:
    line = Measured("7b", "bf16", "swap", seconds=0.5, nbytes=2_000_000_000, peak_bytes=2**31)
    assert as_row(line, None) == "| 7b | bf16 | swap | 0.5 | - | - | 4.00 | 2.00 | - |"


def test_a_model_that_does_not_fit_is_a_line_and_is_not_built(tmp_path: Path) -> None:
    """7.6 billion parameters of 18 bytes are more than 80 GB; the folder has no model."""
    shape = shape_from_config({"model_type": "qwen2", **SHAPES["7b"]})
    case = Case("7b", "bf16", tmp_path, shape, ComputeConfig(bf16=True), 80 * 10**9, True)
    lines = list(measure_case(case, Options(), place=cast(Parallel, None)))
    assert [line.phase for line in lines] == ["train student", "train discriminator"]
    for line in lines:
        assert (line.problem, line.seconds) == ("does not fit", None)
        assert line.planned_bytes is not None and line.planned_bytes > 18 * 7e9
        assert f"| {line.phase} | does not fit | - |" in as_row(line, None)


def test_models_are_gone_before_the_next_one_is_built(tmp_path: Path) -> None:
    folder = make_hf_folder(tmp_path, vocab_size=512)
    case = Case("tiny", "bf16", folder, TINY, ComputeConfig(bf16=True), None, False)
    options = Options(prompts=1, group_size=2, prompt_tokens=3, response_tokens=4, repeats=1)
    place = initialize(ParallelConfig(), seed=0)
    try:
        bench = Bench(case, "student", options, place)
        bench.train()
        parameters = [
            weakref.ref(parameter)
            for chunk in bench.trainer.modules_to_read()
            for parameter in chunk.parameters()
        ]
        del bench
        let_go_of_models()
        assert [left for left in parameters if left() is not None] == []
    finally:
        shut_down()


@pytest.mark.slow
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
    assert list(found) == ["train student", "swap", "sample", "train discriminator"]
    assert found["train student"]["tokens"] == 4 * 9
    assert found["train discriminator"]["tokens"] == 6 * 9
    assert found["swap"]["nbytes"] == 2 * TINY.num_parameters()
    assert found["sample"]["tokens"] == 4 * 5
    assert all(line["seconds"] > 0 and line["mfu"] is None for line in found.values())
    assert "| tiny | bf16 | train student |" in done.stdout


def test_shapes_that_are_not_there_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Options(shapes=("8b",))) == 2
    assert "--shapes 8b: not one of 0.5b, 1.5b, 7b, tiny" in capsys.readouterr().err
