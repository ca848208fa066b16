"""The phases that gpu_step measures: one model at a time is on the device, and goes after it."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.step_arithmetic import (
    Measured,
    Rows,
    planned_engine_bytes,
    planned_training_bytes,
    training_flops,
)
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.config.compute import ComputeConfig
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.models import DiscriminatorConfig, StudentConfig
from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.embedded import EmbeddedEngine
from megatron_gad.models.families import load_hf_config
from megatron_gad.planning.shapes import ModelShape
from megatron_gad.stages.discriminator_step import judge
from megatron_gad.training.parallel import Parallel
from megatron_gad.training.trainer import Trainer, TrainerSettings
from megatron_gad.types import Batch, PairBatch, Prompt

Model = Literal["student", "discriminator"]
SAMPLING = "swap and sample"


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
        model = AutoModelForCausalLM.from_config(load_hf_config(folder), trust_remote_code=False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        yield name, 1.0 + 0.1 * drawn if name.endswith("norm.weight") else 0.02 * drawn


@dataclass(frozen=True)
class Case:
    """One shape in one precision.

    folder: with the config.json. usable: bytes of the device that may be planned with; None: no
    bound. samples: whether the weight swap and sampling are measured, too.
    """

    name: str
    precision: str
    folder: Path
    shape: ModelShape
    compute: ComputeConfig
    usable: int | None
    samples: bool

    def line(self, phase: str, seconds: float | None, **found: Any) -> Measured:
        """Return a line of the table."""
        return Measured(self.name, self.precision, phase, seconds, **found)

    def refusal(self, phase: str, planned: int) -> Measured | None:
        """Return the line of a phase that the device cannot hold, None where it can."""
        if self.usable is None or planned <= self.usable:
            return None
        return self.line(phase, None, planned_bytes=planned, problem="does not fit")


class Bench:
    """One model with its data."""

    def __init__(self, case: Case, model: Model, options: Options, place: Parallel) -> None:
        self._options = options
        self._is_scorer = model == "discriminator"
        hf_config = load_hf_config(case.folder)
        settings = TrainerSettings(ParallelConfig(), case.compute, seed=0)
        if self._is_scorer:
            self.trainer = Trainer.scorer(hf_config, DiscriminatorConfig(), place, settings)
        else:
            self.trainer = Trainer.language_model(hf_config, StudentConfig(), place, settings)
        self.trainer.load_hf_weights(random_weights(case.folder))
        self._vocab_size: int = hf_config.vocab_size

    def train(self) -> None:
        """Take one policy step, or score and learn in one pass."""
        rows = rows_of(self._options, self._is_scorer)
        if self._is_scorer:
            trained = torch.ones(rows.count, dtype=torch.bool)
            pairs = PairBatch(*self._drawn(rows), trained, self._options.group_size)
            judge(self.trainer, pairs, kind="bradley_terry", split_groups=False)
            return
        advantages = torch.linspace(-1.0, 1.0, rows.count)
        batch = Batch(*self._drawn(rows)).with_advantages(advantages)
        loss = partial(policy_loss, options=PolicyOptions(kl_coef=0.0))
        self.trainer.train(batch, loss, temperature=0.8)

    def _drawn(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        width = rows.prompt + rows.response
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(self._vocab_size, (rows.count, width), generator=generator)
        lengths = torch.full((rows.count,), width)
        return tokens, lengths, (torch.arange(width) >= rows.prompt).expand(rows.count, width)


def rows_of(options: Options, is_scorer: bool) -> Rows:
    """Return the rows of a step; the discriminator reads the teacher's as well."""
    count = options.prompts * (options.group_size + is_scorer)
    sizes = options.prompt_tokens, options.response_tokens
    return Rows(count, options.micro_batch_size, *sizes)


def measure_case(case: Case, options: Options, place: Parallel) -> Iterator[Measured]:
    """Yield all lines of one shape in one precision; what does not fit becomes a line, too."""
    models: tuple[Model, ...] = ("student", "discriminator")
    for model in models:
        rows = rows_of(options, is_scorer=model == "discriminator")
        chunk = case.compute.logprob_chunk_size
        planned = planned_training_bytes(
            case.shape, rows, case.precision, model == "discriminator", chunk
        )
        phase = f"train {model}"
        refused = case.refusal(phase, planned)
        if refused:
            yield refused
            continue
        try:
            for line in _measure_model(case, model, planned, options, place):
                yield line
                phase = SAMPLING  # all that comes after training
        except torch.OutOfMemoryError:
            yield case.line(phase, None, problem="out of memory")
        finally:
            let_go_of_models()


def _measure_model(
    case: Case, model: Model, planned: int, options: Options, place: Parallel
) -> Iterator[Measured]:
    """Build one model, and yield its lines."""
    stopwatch = Stopwatch(place.device, options.repeats)
    bench = Bench(case, model, options, place)
    seconds, peak = stopwatch.measure(bench.train)
    is_scorer = model == "discriminator"
    rows = rows_of(options, is_scorer)
    yield case.line(
        f"train {model}",
        seconds,
        tokens=rows.tokens,
        flops=training_flops(case.shape, rows, is_scorer),
        peak_bytes=peak,
        planned_bytes=planned,
    )
    if case.samples and not is_scorer:
        tokens = options.prompts * options.group_size * _row_tokens(options)
        planned = planned_engine_bytes(case.shape, case.precision, tokens)
        refused = case.refusal(SAMPLING, planned)
        yield from [refused] if refused else _measure_engine(case, bench.trainer, options, place)


def _row_tokens(options: Options) -> int:
    return options.prompt_tokens + options.response_tokens


def _measure_engine(
    case: Case, student: Trainer, options: Options, place: Parallel
) -> Iterator[Measured]:
    """Yield the lines of the weight swap and of sampling."""
    stopwatch = Stopwatch(place.device, options.repeats)
    engine = EmbeddedEngine(case.folder, place.device, torch.bfloat16)
    nbytes = sum(tensor.numel() * 2 for _, tensor in student.hf_weights())
    seconds, peak = stopwatch.measure(lambda: engine.load_weights(student.hf_weights(), version=1))
    yield case.line("swap", seconds, nbytes=nbytes, peak_bytes=peak)
    ids = tuple(range(1, 1 + options.prompt_tokens))
    prompts = [Prompt(index, (), "", ids, ()) for index in range(options.prompts)]
    sampling = SamplingConfig(options.group_size, max_new_tokens=options.response_tokens)
    seconds, peak = stopwatch.measure(lambda: engine.generate(prompts, sampling))
    tokens = options.prompts * options.group_size * options.response_tokens
    yield case.line("sample", seconds, tokens=tokens, peak_bytes=peak)
    engine.close()


def let_go_of_models() -> None:
    """Free what the models before held of the device.

    A model is a cycle, in which a layer may hold nodes of its last graph, and the collector cannot
    look into those.
    """
    for found in gc.get_objects():
        if issubclass(type(found), MegatronModule):
            found.__dict__.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
