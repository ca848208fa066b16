"""The command: ``megatron_gad CONFIG.toml [--flag value ...]``. Load, check, train.

``megatron_gad evaluate ...`` measures what was trained; see ``evaluation/command.py``.
``megatron_gad report ...`` shows a run; see ``reporting/command.py``.
"""

import gc
import logging
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megatron_gad.checks.found import find
from megatron_gad.checks.inputs import open_codecs
from megatron_gad.checks.limits import check_limits
from megatron_gad.checks.models import check_values, model_warnings
from megatron_gad.checks.resume import check_override, check_resume
from megatron_gad.checks.run import check_found
from megatron_gad.checks.secrets import masked
from megatron_gad.config.command_line import CliOptions, load_config
from megatron_gad.config.run import RunConfig
from megatron_gad.cpu_seam import install_if_needed
from megatron_gad.data.codecs import Codecs
from megatron_gad.environment import (
    environment_rank,
    environment_world_size,
    launched_without_torchrun,
)
from megatron_gad.errors import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    NO_STORAGE,
    STOPPED,
    RunStoppedError,
)
from megatron_gad.models.hub import with_model_folders
from megatron_gad.storage import StorageError, telling_of_storage

logger = logging.getLogger(__name__)

# What is told in words, without a traceback.
STATUS = {ValueError: BAD_INPUT, RunStoppedError: STOPPED, StorageError: NO_STORAGE}


def main() -> int:
    """Run the command on this rank; returns the exit status."""
    rank = environment_rank()
    if sys.argv[1:2] == ["report"]:
        return _report(sys.argv[2:])
    install_if_needed()
    if sys.argv[1:2] == ["evaluate"]:
        return _evaluate(sys.argv[2:])
    try:
        config, options = load_config(sys.argv[1:])
        with telling_of_storage(Path(config.checkpoint.save)):
            return _obey(config, options, rank)
    except tuple(STATUS) as error:
        return _tell(rank, error)


def _evaluate(argv: Sequence[str]) -> int:
    """Measure students; returns the exit status."""
    # What measures answers takes seconds to import, and a run needs none of it.
    try:
        from megatron_gad.evaluation.command import main as evaluate  # noqa: PLC0415
    except ModuleNotFoundError as error:
        remedy = "pip install 'megatron-gad[evaluate]'"
        print(f"megatron_gad evaluate needs {error.name}: {remedy}", file=sys.stderr)
        return BAD_INPUT
    return evaluate(argv)


def _report(argv: Sequence[str]) -> int:
    """Show a run; returns the exit status."""
    # What draws takes seconds to import, and a run needs it at its end alone.
    from megatron_gad.reporting.command import report  # noqa: PLC0415

    try:
        report(argv, "megatron-gad report")
    except (ValueError, OSError) as error:
        return _tell(0, ValueError(str(error)))
    return 0


def _tell(rank: int, error: BaseException) -> int:
    """Print what ends this rank; returns the exit status."""
    status = next((number for kind, number in STATUS.items() if isinstance(error, kind)), None)
    if status is None:
        traceback.print_exception(error)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED
    # An error can be this rank's alone, so every rank reports; only one at full length.
    message = str(error) if rank == 0 else f"rank {rank}: {str(error).splitlines()[0]}"
    print(f"megatron_gad: {masked(message)}", file=sys.stderr)
    return status


def _refuse(problems: Sequence[str], rank: int) -> int:
    """Print what is wrong with a configuration; returns the exit status."""
    if rank == 0:
        print(f"megatron_gad: {len(problems)} problem(s) in the configuration", file=sys.stderr)
        print("\n".join(f"  - {masked(each)}" for each in problems), file=sys.stderr)
    return BAD_INPUT


def _obey(config: RunConfig, options: CliOptions, rank: int) -> int:
    if options.world_size is not None and not options.dry_run:
        raise ValueError(
            f"--world-size {options.world_size} only plans; add --dry-run, or start that many "
            f"ranks: torchrun --nproc-per-node {options.world_size} -m megatron_gad ..."
        )
    if options.check_weights and not options.dry_run:
        raise ValueError(
            "--check-weights reads gigabytes and is part of a dry run; add --dry-run, or leave it "
            "out"
        )
    if launched_without_torchrun():
        raise ValueError(
            "several Slurm tasks were started without torchrun, so each would be a run of its own; "
            "start one task per node, and torchrun in it (examples/lmsys_qwen2.5_7b/slurm.sbatch)"
        )
    world_size = options.world_size or environment_world_size()
    problems = list(check_limits(config))
    if problems:
        return _refuse(problems, rank)
    config = with_model_folders(config, may_fetch=not options.dry_run)
    changes = check_resume(config)
    found = find(config, world_size)
    problems = [
        *check_found(config, found),
        *check_override(config),
        *changes.refused,
        *(check_values(found.models) if options.check_weights and rank == 0 else ()),
    ]
    if problems:
        return _refuse(problems, rank)
    if options.dry_run:
        if rank == 0:
            from megatron_gad.planning.describe import describe_run  # noqa: PLC0415 - see _train

            print(describe_run(config, world_size, changes=changes.told, models=found.models))
        return 0
    warnings = [*model_warnings(found.models, config.compute.bf16)]
    _train(config, rank, open_codecs(config, found.models), warnings)
    return 0


def _train(config: RunConfig, rank: int, codecs: Codecs, warnings: Sequence[str]) -> None:
    logging.basicConfig(format=" [%(asctime)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    logging.getLogger("megatron_gad").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    if rank == 0:
        for warning in warnings:
            logger.warning(warning)
    # Megatron takes seconds to import; --help and every mistake should not wait for it.
    # Looking for garbage among what imports leave behind, then and later, is time for nothing.
    gc.disable()
    from megatron_gad.train import train  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    train(config, partial(_tell, rank), codecs)


if __name__ == "__main__":
    sys.exit(main())
