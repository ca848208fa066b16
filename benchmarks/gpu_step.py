"""One GAD step of models with random weights, measured phase by phase on one GPU.

    python -m benchmarks.gpu_step [--json FILE] [--shapes 0.5b 1.5b 7b]
    python -m benchmarks.gpu_step --device cpu --shapes tiny        # the same code, anywhere

Training of student and discriminator in bf16, and in FP8 where Transformer Engine is installed and
the card takes it; a weight swap into the embedded engine, and sampling from it. The first call of a
phase is not counted; the rest give a median.
"""

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks.step_arithmetic import (
    SHAPES,
    Measured,
    Rows,
    as_record,
    device_named,
    planned_training_bytes,
    table,
    training_flops,
)
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.compute_checks import RECIPE_CAPABILITY, Machine, check_compute, this_machine
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.embedded import EmbeddedEngine
from megatron_gad.judging import judge
from megatron_gad.models.families import load_hf_config
from megatron_gad.planning.shapes import ModelShape, read_shape
from megatron_gad.training.options import (
    ComputeConfig,
    DiscriminatorConfig,
    ParallelConfig,
    StudentConfig,
)
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from megatron_gad.training.trainer import Trainer, TrainerSettings
from megatron_gad.types import Batch, PairBatch, Prompt


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        shapes: models, by size.
        device: where; "cpu" is for trying the script.
        json: also write the lines to this file.
        prompts: of the step.
        group_size: samples of a prompt.
        prompt_tokens: of every prompt.
        response_tokens: of every response.
        micro_batch_size: rows of one forward.
        repeats: of every phase; the median counts.
    """

    shapes: tuple[str, ...] = ("0.5b", "1.5b", "7b")
    device: Literal["cuda", "cpu"] = "cuda"
    json: Path | None = None
    prompts: int = 2
    group_size: int = 4
    prompt_tokens: int = 256
    response_tokens: int = 256
    micro_batch_size: int = 5
    repeats: int = 3


def check(options: Options) -> None:
    """Raise ValueError where the options cannot be followed here."""
    unknown = [name for name in options.shapes if name not in SHAPES]
    if unknown:
        raise ValueError(f"--shapes {' '.join(unknown)}: not one of {', '.join(SHAPES)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "no CUDA device was found; --device cpu --shapes tiny tries the script without one"
        )
    if options.device == "cpu" and torch.cuda.is_available():
        raise ValueError("--device cpu beside a GPU needs CUDA_VISIBLE_DEVICES='' before python")


def precisions(machine: Machine) -> dict[str, ComputeConfig]:
    """Return bf16, and FP8 by every recipe that this machine takes."""
    found = {"bf16": ComputeConfig(bf16=True)}
    impl = "transformer_engine"
    for recipe in RECIPE_CAPABILITY:
        fp8 = replace(found["bf16"], transformer_impl=impl, fp8_format="hybrid", fp8_recipe=recipe)
        if not list(check_compute(fp8, ParallelConfig(), machine)):
            found[f"fp8 {recipe}"] = fp8
    return found


class Stopwatch:
    """Times a phase on the device, and reads the most memory that it allocated."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self._device, self._repeats = device, repeats

    def measure(self, phase: Callable[[], object]) -> tuple[float, int | None]:
        """Return the median of the seconds and, on a GPU, the peak of the bytes."""
        phase()
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(self._repeats):
            self._wait()
            start = time.perf_counter()
            phase()
            self._wait()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds), torch.cuda.max_memory_allocated() if on_gpu else None

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def random_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield weights of a folder's shape as a new model has them, and no model's in particular."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_hf_config(folder))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        yield name, 1.0 + 0.1 * drawn if name.endswith("norm.weight") else 0.02 * drawn


class Bench:
    """Both models of one shape in one precision, with their data."""

    def __init__(
        self, folder: Path, compute: ComputeConfig, options: Options, place: Parallel
    ) -> None:
        self._options = options
        hf_config = load_hf_config(folder)
        settings = TrainerSettings(ParallelConfig(), compute, seed=0)
        self.student = Trainer.language_model(hf_config, StudentConfig(), place, settings)
        self.student.load_hf_weights(random_weights(folder))
        self.discriminator = Trainer.scorer(hf_config, DiscriminatorConfig(), place, settings)
        self.discriminator.load_hf_weights(self.student.hf_weights())
        self._vocab_size: int = hf_config.vocab_size

    def train_student(self) -> None:
        """Take one policy step."""
        rows = self.rows(is_scorer=False)
        advantages = torch.linspace(-1.0, 1.0, rows.count)
        batch = Batch(*self._drawn(rows)).with_advantages(advantages)
        loss = partial(policy_loss, options=PolicyOptions(kl_coef=0.0))
        self.student.train(batch, loss, temperature=0.8)

    def train_discriminator(self) -> None:
        """Score and learn in one pass."""
        rows = self.rows(is_scorer=True)
        trained = torch.ones(rows.count, dtype=torch.bool)
        pairs = PairBatch(*self._drawn(rows), trained, self._options.group_size)
        judge(self.discriminator, pairs, kind="bradley_terry", split_groups=False)

    def rows(self, is_scorer: bool) -> Rows:
        """Return the rows of a step; the discriminator reads the teacher's as well."""
        options = self._options
        count = options.prompts * (options.group_size + is_scorer)
        sizes = options.prompt_tokens, options.response_tokens
        return Rows(count, options.micro_batch_size, *sizes)

    def _drawn(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        width = rows.prompt + rows.response
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(self._vocab_size, (rows.count, width), generator=generator)
        lengths = torch.full((rows.count,), width)
        return tokens, lengths, (torch.arange(width) >= rows.prompt).expand(rows.count, width)


def measure_training(
    bench: Bench, names: tuple[str, str], shape: ModelShape, stopwatch: Stopwatch
) -> Iterator[Measured]:
    """Yield the lines of student and discriminator; names: of shape and precision."""
    for model, phase, is_scorer in (
        ("student", bench.train_student, False),
        ("discriminator", bench.train_discriminator, True),
    ):
        rows = bench.rows(is_scorer)
        seconds, peak = stopwatch.measure(phase)
        chunk = ComputeConfig().logprob_chunk_size
        yield Measured(
            *names,
            f"train {model}",
            seconds,
            tokens=rows.tokens,
            flops=training_flops(shape, rows, is_scorer),
            peak_bytes=peak,
            planned_bytes=planned_training_bytes(shape, rows, names[1], is_scorer, chunk),
        )


def measure_engine(
    bench: Bench, folder: Path, names: tuple[str, str], options: Options, place: Parallel
) -> Iterator[Measured]:
    """Yield the lines of the weight swap and of sampling."""
    stopwatch = Stopwatch(place.device, options.repeats)
    engine = EmbeddedEngine(folder, place.device, torch.bfloat16)
    nbytes = sum(tensor.numel() * 2 for _, tensor in bench.student.hf_weights())
    seconds, peak = stopwatch.measure(
        lambda: engine.load_weights(bench.student.hf_weights(), version=1)
    )
    yield Measured(*names, "swap", seconds, nbytes=nbytes, peak_bytes=peak)
    ids = tuple(range(1, 1 + options.prompt_tokens))
    prompts = [Prompt(index, (), "", ids, ()) for index in range(options.prompts)]
    sampling = SamplingConfig(options.group_size, max_new_tokens=options.response_tokens)
    seconds, peak = stopwatch.measure(lambda: engine.generate(prompts, sampling))
    tokens = options.prompts * options.group_size * options.response_tokens
    yield Measured(*names, "sample", seconds, tokens=tokens, peak_bytes=peak)
    engine.close()


def measure_shape(name: str, options: Options, place: Parallel) -> Iterator[Measured]:
    """Yield all lines of one shape."""
    with tempfile.TemporaryDirectory() as written:
        folder = Path(written)
        Qwen2Config(**SHAPES[name], architectures=["Qwen2ForCausalLM"]).save_pretrained(folder)
        shape = read_shape(folder)
        stopwatch = Stopwatch(place.device, options.repeats)
        for precision, compute in precisions(this_machine()).items():
            names = name, precision
            sized = replace(compute, micro_batch_size=options.micro_batch_size)
            bench = Bench(folder, sized, options, place)
            yield from measure_training(bench, names, shape, stopwatch)
            if precision == "bf16":
                yield from measure_engine(bench, folder, names, options, place)


def run(options: Options) -> list[Measured]:
    """Measure everything in a world of one."""
    check(options)
    place = initialize(ParallelConfig(), seed=0)
    try:
        return [line for name in options.shapes for line in measure_shape(name, options, place)]
    finally:
        shut_down()


def main(options: Options) -> int:
    """Print the table, its date, card and versions; return the exit status."""
    try:
        lines = run(options)
    except ValueError as error:
        print(f"gpu_step: {error}", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name() if options.device == "cuda" else "a CPU, to try the script"
    device = device_named(card)
    names = ("torch", "megatron-core", "transformers")
    versions = {name: version(name) for name in names}
    versions["transformer-engine"] = this_machine().transformer_engine or "not installed"
    about = {"date": time.strftime("%Y-%m-%d"), "card": card, "python": platform.python_version()}
    print(", ".join(f"{name} {value}" for name, value in (about | versions).items()), end="\n\n")
    print(table(lines, device))
    if options.json is not None:
        records = [as_record(line, device) for line in lines]
        options.json.write_text(json.dumps({**about, "versions": versions, "lines": records}))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
