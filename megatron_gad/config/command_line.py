"""The command line: ``CONFIG.toml [--flag value ...]``.

A TOML file with one table per section gives the defaults and flags override them. Flags are made
from the dataclasses: flat where Megatron has the name (``--tensor-model-parallel-size 2``), dotted
elsewhere (``--student.lr 1e-6``). ``--sglang-<argument>`` goes on to the SGLang servers.
"""

from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass, fields, replace
from io import StringIO
from pathlib import Path
from typing import Annotated

import tyro

from megatron_gad.config.flags import (
    FLAT,
    flag_names,
    refuse_unknown,
    removed_flags,
    take_passed_on,
)
from megatron_gad.config.removed import removed_keys
from megatron_gad.config.rollout import SGLangConfig
from megatron_gad.config.run import RunConfig, config_kind
from megatron_gad.config.toml import read_toml
from megatron_gad.environment import environment_rank


@dataclass(frozen=True)
class CliOptions:
    """What the command is asked to do beside the run's configuration.

    Attributes:
        config: TOML file, as the first argument; without one all keys have their defaults.
        dry_run: check everything, print the resolved plan and stop.
        world_size: number of ranks to check and plan for; default: those that torchrun started.
        check_weights: with --dry-run, look in all weights for values that are not finite.
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.toml")] = ""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    world_size: int | None = None
    check_weights: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


@dataclass(frozen=True)
class _CommandLine:
    """Distil a teacher's text into a student by Generative Adversarial Distillation.

    The file has one table per section. Every key is also a flag, which overrides the file: flat
    under Megatron's name, or dotted with the table's name before it. --sglang-<argument> VALUE
    passes any argument of an SGLang server on. "megatron-gad evaluate --help" is about measuring
    students, "megatron-gad report --help" about the page of a run.
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
    kind = config_kind()
    defaults = read_toml(Path(source), kind) if source else kind()
    own = {field.name for field in fields(SGLangConfig)} | removed_keys("sglang")
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
    refuse_unknown(unknown, flag_names(kind, CliOptions), removed_flags(kind))
    if command.options.config != source:
        raise ValueError(
            f"configuration file {command.options.config!r} comes after a flag; "
            "it has to be the first argument: megatron_gad CONFIG.toml [--flag value ...]"
        )
    sglang = command.run.sglang
    sglang = replace(sglang, server_args={**sglang.server_args, **server_args})
    return replace(command.run, sglang=sglang), command.options
