"""The command: ``megatron_gad CONFIG.toml [--flag value ...]``. Load, check, train."""

import logging
import sys

from megatron_gad.config import CliOptions, RunConfig, load_config
from megatron_gad.plan import describe_plan
from megatron_gad.training.environment import environment_rank, environment_world_size

# What the shell sees where the input is at fault; argparse and its relatives use the same.
BAD_INPUT = 2


def main() -> int:
    """Run the command on this rank; returns the exit status."""
    rank = environment_rank()
    try:
        config, options = load_config(sys.argv[1:])
        return _obey(config, options, rank)
    except ValueError as error:
        # An error can be this rank's alone, so every rank reports; only one at full length.
        message = str(error) if rank == 0 else f"rank {rank}: {str(error).splitlines()[0]}"
        print(f"megatron_gad: {message}", file=sys.stderr)
        return BAD_INPUT


def _obey(config: RunConfig, options: CliOptions, rank: int) -> int:
    if options.world_size is not None and not options.dry_run:
        raise ValueError(
            f"--world-size {options.world_size} only plans; add --dry-run, or start that many "
            f"ranks: torchrun --nproc-per-node {options.world_size} -m megatron_gad ..."
        )
    world_size = options.world_size or environment_world_size()
    problems = config.check(world_size)
    if problems:
        if rank == 0:
            print(f"megatron_gad: {len(problems)} problem(s) in the configuration", file=sys.stderr)
            print("\n".join(f"  - {problem}" for problem in problems), file=sys.stderr)
        return BAD_INPUT
    if options.dry_run:
        if rank == 0:
            print(describe_plan(config, world_size))
        return 0
    _train(config, rank)
    return 0


def _train(config: RunConfig, rank: int) -> None:
    logging.basicConfig(format=" [%(asctime)s] %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    logging.getLogger("megatron_gad").setLevel(logging.INFO if rank == 0 else logging.WARNING)
    # Megatron takes seconds to import; --help, --dry-run and every mistake should not wait for it.
    from megatron_gad.train import run  # noqa: PLC0415

    run(config)


if __name__ == "__main__":
    sys.exit(main())
