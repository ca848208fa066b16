"""The whole configuration of a run: the sections of the parts, composed.

A TOML file with one table per section gives the defaults and flags override them. Flags are made
from the dataclasses: flat where Megatron has the name (``--tensor-model-parallel-size 2``), dotted
elsewhere (``--student.lr 1e-6``). ``--sglang-<argument>`` goes on to the SGLang servers.
"""

from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, field, fields, replace
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal

import tyro

from megatron_gad.compute_checks import check_compute, this_machine
from megatron_gad.config_checks import (
    check_algorithm,
    check_data,
    check_optimizer,
    check_replay,
    check_rollout,
    check_run_directory,
    check_schedule,
    check_token_bound,
    check_watchdog,
)
from megatron_gad.config_file import format_toml, read_toml
from megatron_gad.config_flags import FLAT, flag_names, refuse_unknown, take_passed_on
from megatron_gad.data.dataset import DataConfig
from megatron_gad.engines.base import RolloutConfig
from megatron_gad.engines.sglang.launch import SGLangConfig
from megatron_gad.expert_checks import check_experts, experts_in
from megatron_gad.layer_checks import check_layers
from megatron_gad.layout_checks import check_own_layout, check_parallel
from megatron_gad.model_checks import check_models
from megatron_gad.models.layout_rules import data_parallel_size, ranks_beside_the_first
from megatron_gad.planning.choice import ScheduleConfig
from megatron_gad.planning.layout import HOST_GPUS
from megatron_gad.runtime.metrics import LogConfig
from megatron_gad.runtime.watchdog import WatchdogConfig
from megatron_gad.sglang_checks import check_deadlines, check_served_student, check_sglang
from megatron_gad.stage_checks import (
    DataSizes,
    check_adversarial,
    check_offload,
    check_overlap,
    check_seqkd,
    check_stage_names,
    check_warmup,
)
from megatron_gad.stage_config import AdversarialConfig, GadConfig, SeqkdConfig, WarmupConfig
from megatron_gad.training.environment import (
    environment_rank,
    is_started_by_torchrun,
    local_world_size,
)
from megatron_gad.training.options import (
    CheckpointConfig,
    ComputeConfig,
    DiscriminatorConfig,
    ParallelConfig,
    StudentConfig,
)

StageName = Literal["seqkd", "warmup", "adversarial"]


@dataclass(frozen=True)
class RunConfig:
    """Everything a user may choose about a run.

    Attributes:
        stages: what the run does, in this order.
        seed: of the data order, of sampling and of new weights.
    """

    stages: tuple[StageName, ...] = ("warmup", "adversarial")
    seed: int = 1234
    parallel: Annotated[ParallelConfig, FLAT] = field(default_factory=ParallelConfig)
    compute: Annotated[ComputeConfig, FLAT] = field(default_factory=ComputeConfig)
    checkpoint: Annotated[CheckpointConfig, FLAT] = field(default_factory=CheckpointConfig)
    log: Annotated[LogConfig, FLAT] = field(default_factory=LogConfig)
    data: DataConfig = field(default_factory=DataConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    seqkd: SeqkdConfig = field(default_factory=SeqkdConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    gad: GadConfig = field(default_factory=GadConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    sglang: SGLangConfig = field(default_factory=SGLangConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    @property
    def discriminator_layout(self) -> ParallelConfig:
        """The discriminator's layout: the student's but for what it has of its own.

        Its model's folder says whether sizes for experts are among that.
        """
        model = self.discriminator.path or self.student.path
        return self.discriminator.beside(self.parallel, experts_in(model) is not None)

    def check(self, world_size: int) -> list[str]:
        """Return every violation, each with key, value, what is allowed and the remedy.

        Touches files only: no process group, no device.

        Args:
            world_size: ranks that the run will have.
        """
        layouts = (self.parallel, self.discriminator_layout)
        sizes = DataSizes(*(data_parallel_size(layout, world_size) for layout in layouts))
        has_eval = bool(self.data.eval_path)
        problems = [
            *check_stage_names(self.stages),
            *check_parallel(self.parallel, self.compute, world_size),
            *check_compute(self.compute, self.parallel, this_machine()),
            *check_offload(self.stages, self.compute),
            *check_token_bound(self.compute, self.data),
            *check_run_directory(self.checkpoint, self.log),
            *check_data(self.data),
            *check_optimizer("student", self.student),
            *check_optimizer("discriminator", self.discriminator),
            *check_own_layout(self.discriminator, self.parallel, self.compute, world_size),
            *check_models(self.student.path, self.discriminator.path, layouts, self.data),
            *check_layers(self.student.path, self.discriminator.path, layouts, self.compute),
            *check_experts(self.student.path, self.discriminator, self.parallel, world_size),
            *check_algorithm(self.gad),
            *check_rollout(self.rollout),
            *check_watchdog(self.watchdog, self.parallel, world_size),
            *check_schedule(self.schedule),
        ]
        if self.rollout.engine == "replay":
            problems += check_replay(self.rollout)
        if self.rollout.engine == "sglang":
            num_gpus = ranks_beside_the_first(self.parallel, world_size, _host_size())
            problems += check_sglang(self.sglang, sizes.student, num_gpus)
            problems += check_deadlines(self.sglang, self.watchdog)
            problems += check_served_student(self.student.path)
        if "seqkd" in self.stages:
            problems += check_seqkd(self.seqkd, has_eval, sizes.student)
        if "warmup" in self.stages:
            problems += check_warmup(self.warmup, sizes)
        if "adversarial" in self.stages:
            problems += check_adversarial(self.adversarial, sizes)
            problems += check_overlap(self.adversarial, self.gad, self.rollout)
        return problems


def _host_size() -> int:
    """Return the ranks of a node: those that torchrun started here, or as many as is usual."""
    return local_world_size() if is_started_by_torchrun() else HOST_GPUS


@dataclass(frozen=True)
class CliOptions:
    """What the command is asked to do beside the run's configuration.

    Attributes:
        config: TOML file, the first argument; without one the defaults hold.
        dry_run: check everything, print the resolved plan and stop.
        world_size: ranks to check and plan for; by default what torchrun started.
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.toml")] = ""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    world_size: int | None = None


@dataclass(frozen=True)
class _CommandLine:
    """Distil a teacher's text into a student by Generative Adversarial Distillation.

    The file has one table per section. Every key is also a flag, which overrides the file: flat
    under Megatron's name, or dotted with the table's name before it. --sglang-<argument> VALUE
    passes any argument of an SGLang server on.
    """

    options: Annotated[CliOptions, FLAT]
    run: Annotated[RunConfig, FLAT]


def load_config(argv: Sequence[str]) -> tuple[RunConfig, CliOptions]:
    """Read ``CONFIG.toml [--flag value ...]``.

    Args:
        argv: the arguments after the program's name.

    Raises:
        ValueError: the file is wrong, all unknown keys and wrong types at once, or flags are
            unknown.
        SystemExit: a flag's value is wrong (2, after a message on rank 0) or --help (0).
    """
    source = argv[0] if argv and not argv[0].startswith("-") else ""
    defaults = read_toml(Path(source), RunConfig) if source else RunConfig()
    own = {field.name for field in fields(SGLangConfig)}
    arguments, server_args = take_passed_on(argv, "sglang", own)
    # Every rank parses the same words; one is enough to say what is wrong with them.
    with nullcontext() if environment_rank() == 0 else redirect_stderr(StringIO()):
        command, unknown = tyro.cli(
            _CommandLine,
            prog="megatron_gad",
            args=arguments,
            default=_CommandLine(CliOptions(config=source), defaults),
            console_outputs=environment_rank() == 0,
            return_unknown_args=True,
        )
    refuse_unknown(unknown, known=flag_names(RunConfig, CliOptions))
    if command.options.config != source:
        raise ValueError(
            f"configuration file {command.options.config!r} comes after a flag; "
            "it has to be the first argument: megatron_gad CONFIG.toml [--flag value ...]"
        )
    sglang = command.run.sglang
    sglang = replace(sglang, server_args={**sglang.server_args, **server_args})
    return replace(command.run, sglang=sglang), command.options


def to_toml(config: RunConfig) -> str:
    """Write a configuration as TOML; reading it back gives an equal one."""
    return format_toml(config)
