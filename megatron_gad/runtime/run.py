"""The parts of a run, built from its configuration, and where the run stands."""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PretrainedConfig

from megatron_gad.checks.inputs import ReadRows, read_codecs
from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.data.codecs import Codecs
from megatron_gad.data.order import PromptOrder, State
from megatron_gad.engines.build import build_engine
from megatron_gad.engines.replay import ROLLOUTS_FOLDER
from megatron_gad.models.families import load_hf_config, mixture_of
from megatron_gad.planning.choice import describe_residency
from megatron_gad.planning.of_run import plan_residency
from megatron_gad.rewards.client import Rewards
from megatron_gad.runtime.metrics import MetricsWriter
from megatron_gad.runtime.run_folder import RunFolderLock, check_is_shared
from megatron_gad.runtime.run_prompts import NOTHING, fingerprint_of, load_run_prompts
from megatron_gad.runtime.sampler import Ahead, Sampler
from megatron_gad.runtime.turns import Turns, Watch, no_watch
from megatron_gad.training.checkpoint_digests import check_model_folder
from megatron_gad.training.parallel import Parallel, add_layout
from megatron_gad.training.trainer import Trainer, TrainerSettings
from megatron_gad.types import Prompt

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands. Plain values: this is what a checkpoint writes down.

    iteration: steps over all stages.
    weights_version: updates of the student, so that an engine's copy can be told to be old.
    """

    iteration: int = 0
    stage_index: int = 0
    step_in_stage: int = 0
    weights_version: int = 0
    consumed_samples: int = 0

    def count_step(self, num_samples: int) -> None:
        """Count a step that was taken on so many prompts."""
        self.iteration += 1
        self.step_in_stage += 1
        self.consumed_samples += num_samples


class Run:
    """Everything a step works with, whichever the stage. The discriminator comes with a stage."""

    def __init__(
        self,
        config: RunConfig,
        parallel: Parallel,
        watch: Watch = no_watch,
        codecs: Codecs | None = None,
        read: ReadRows = NOTHING,
    ) -> None:
        """Build the parts.

        watch: entered for as long as a turn lasts.
        codecs: what turns text into ids, if it was opened already.
        read: the rows that the first rank has read already.
        """
        self.config = config
        self.parallel = parallel
        self.folder = Path(config.checkpoint.save)
        check_is_shared(self.folder, parallel)
        self.lock = RunFolderLock(self.folder, parallel)
        self.writer = MetricsWriter(self.folder, config.log, parallel.is_writer)
        self.codecs = codecs or read_codecs(config)
        self.codec = self.codecs.student
        self.prompts = load_run_prompts(config, self.codecs, parallel, read=read)
        self.eval_prompts = load_run_prompts(config, self.codecs, parallel, True, read)
        self._check_sizes()
        self.settings = TrainerSettings(config.parallel, config.compute, config.seed)
        record_folder = self.folder / ROLLOUTS_FOLDER if config.rollout.record else None
        engine = _build_engine(config, parallel) if config.uses_engine else None
        scorer_codec = self.codecs.scorer
        self.sampler = Sampler(engine, self.codec, parallel, record_folder, scorer_codec)
        if parallel.device.type == "cuda":
            self.sampler.sleep()  # a server took its memory when all was free; now models need it
            parallel.barrier()
        self.rewards = Rewards(config.rewards)
        self.student = _build_student(config, parallel, self.settings)
        self.turn = _build_turns(self, watch)
        self.turn.add("student", self.student)
        self.progress = Progress()
        self.skips_in_a_row = {"student": 0, "discriminator": 0}
        self.last_update = 0  # the step in which a model last learned
        self._discriminator: Trainer | None = None
        self.start_orders()

    @property
    def stage_name(self) -> str:
        """The stage that the run is in."""
        return self.config.stages[self.progress.stage_index]

    @property
    def has_discriminator(self) -> bool:
        """Whether a discriminator was built already."""
        return self._discriminator is not None

    @property
    def discriminator(self) -> Trainer:
        """The discriminator; built by the first stage that needs one."""
        assert self._discriminator is not None, "this stage has no discriminator"
        return self._discriminator

    def build_discriminator(self) -> None:
        """Make the discriminator, in its own layout; its weights are undefined until loaded."""
        config = self.config.discriminator
        hf_config = load_hf_config(config.path) if config.path else self.student.hf_config
        layout = self.config.discriminator_layout(mixture_of(hf_config) is not None)
        is_as_student = layout == self.config.parallel
        place = self.parallel if is_as_student else add_layout(layout, self.config.seed)
        settings = replace(self.settings, layout=layout)
        self._discriminator = Trainer.scorer(hf_config, config, place, settings)
        self.turn.add("discriminator", self._discriminator)

    def _check_sizes(self) -> None:
        """Raise ValueError if the held-out rows are too few for the ranks."""
        size = self.parallel.data_size
        if self.config.data.eval_path and len(self.eval_prompts) < size:
            raise ValueError(
                f"data.eval_path = {self.config.data.eval_path!r} has {len(self.eval_prompts)} "
                f"usable rows for {size} data-parallel ranks; give at least one row per rank"
            )

    def start_orders(self) -> None:
        """Begin the data orders of the current stage."""
        rows, seed = len(self.prompts), self.config.seed + 1000 * self.progress.stage_index
        self.order = PromptOrder(rows, seed, self.config.data.shuffle)
        self.extra_order = PromptOrder(rows, seed + 500, shuffle=True)
        self.ahead: Ahead | None = None

    def order_states(self) -> dict[str, State]:
        """Return where the data orders are, without what was taken for rollouts ahead."""
        if self.ahead is not None:
            return self.ahead.orders
        return {"order": self.order.state_dict(), "extra_order": self.extra_order.state_dict()}

    def load_order_states(self, states: Mapping[str, State]) -> None:
        """Go on where the data orders stood."""
        self.order.load_state_dict(states["order"])
        self.extra_order.load_state_dict(states["extra_order"])

    @cached_property
    def data_fingerprint(self) -> str:
        """What tells the texts of the run's data from others."""
        return fingerprint_of(self.prompts)

    @property
    def epoch(self) -> float:
        """Passes over the data of the stage, with their fraction."""
        order = self.order_states()["order"]
        return order["epoch"] + order["position"] / order["num_rows"]

    def take_prompts(self, count: int) -> list[Prompt]:
        """Return this data rank's share of the next ``count`` prompts."""
        return self._share(self.order.take(count))

    def take_with_extra(
        self, count: int, extra_count: int, num_extra: int
    ) -> tuple[list[Prompt], list[list[Prompt]]]:
        """Return this data rank's share of the next prompts, and of those of each extra step.

        Extra prompts have an order of their own. None comes twice in one call, and none is one of
        the ``count`` if the data suffice: it would teach the discriminator less than another.
        """
        rows, total = self.order.take(count), extra_count * num_extra
        besides = rows if count + total <= len(self.prompts) else ()
        extra = self.extra_order.take(total, besides)
        parts = [extra[i * extra_count : (i + 1) * extra_count] for i in range(num_extra)]
        # Each step's prompts are shared out on their own: its batch is the same on any data ranks.
        return self._share(rows), [self._share(part) for part in parts]

    def close(self) -> None:
        """Stop the engine and finish all files, also if one of them fails."""
        with contextlib.ExitStack() as parts:
            parts.callback(self.lock.close)
            parts.callback(self.writer.close)
            parts.callback(self.sampler.close)
            parts.callback(self.rewards.close)

    def _share(self, rows: list[int]) -> list[Prompt]:
        return [self.prompts[row] for row in self.parallel.share(rows)]


def _build_student(config: RunConfig, parallel: Parallel, settings: TrainerSettings) -> Trainer:
    if config.checkpoint.verify_checkpoint:
        for key in ("student", "discriminator"):
            if path := getattr(config, key).path:
                check_model_folder(f"{key}.path", path, parallel)
    hf_config: PretrainedConfig = load_hf_config(config.student.path)
    student = Trainer.language_model(hf_config, config.student, parallel, settings)
    student.load_hf_weights(config.student.path)
    return student


def _build_turns(run: Run, watch: Watch) -> Turns:
    residency = plan_residency(run.config, run.parallel.world_size)
    if run.parallel.is_writer:
        logger.info("schedule: %s", "; ".join(describe_residency(residency)))
    return Turns(residency.memory.leaves, run.sampler, run.parallel, watch)


def _build_engine(config: RunConfig, parallel: Parallel):
    if not parallel.is_engine_rank:
        return None
    dtype = torch.bfloat16 if config.compute.bf16 else torch.float32
    return build_engine(
        config.rollout,
        config.student.path,
        parallel.device,
        dtype,
        _servers_of_rank(config, parallel),
        parallel.group_devices(),
    )


def _servers_of_rank(config: RunConfig, parallel: Parallel) -> SGLangConfig:
    """Return the settings with this data rank's share of the URLs."""
    return replace(
        config.sglang,
        urls=config.sglang.urls[parallel.data_rank :: parallel.data_size],
        log_folder=config.sglang.log_folder or str(Path(config.checkpoint.save) / "logs"),
    )
