r"""Convert weights between Hugging Face folders and Megatron checkpoints, both ways, bit for bit.

    python tools/convert_checkpoint.py --from-megatron runs/mine --to-hf runs/mine_hf
    python tools/convert_checkpoint.py --from-hf Qwen2.5-7B-Instruct --to-megatron converted

--from-megatron takes a run directory (its newest checkpoint) or one of its iter_* folders, saved in
whatever layout. A model too large for one process is split over several:

    torchrun --nproc-per-node 4 tools/convert_checkpoint.py --from-hf DIR --to-megatron DIR \
        --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2

The experts of a mixture are shared out by --expert-model-parallel-size; the ranks are then those of
TP x PP and of EP x TP x PP at once: four with --tensor-model-parallel-size 2 and
--expert-model-parallel-size 2, two without the first.

A converted checkpoint holds weights only. A run starts from Hugging Face folders (--student.path),
and resumes only from what a run has saved. Exit status: 0 done, 1 --verify found a difference,
2 bad input.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from megatron_gad.cpu_seam import install_if_needed

install_if_needed()

# isort: split
from megatron_gad.checks.found import read_folder, with_tokenizer
from megatron_gad.checks.models import file_problems, folder_problems, reading_problems
from megatron_gad.checks.weights import value_problems
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.config.output import ModelName
from megatron_gad.environment import environment_rank, environment_world_size
from megatron_gad.models.hub import find_model
from megatron_gad.training import parallel
from megatron_gad.training.checkpoint_files import damage_of
from megatron_gad.training.conversion import (
    find_checkpoint,
    find_hf_source,
    hf_to_megatron,
    load_weights,
    megatron_to_hf,
)
from megatron_gad.training.verification import TOLERANCE, relative_difference

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class Arguments:
    """What to convert; one of the two directions.

    Attributes:
        from_hf: Hugging Face folder, or NAME or NAME@REVISION of the hub, to read.
        to_megatron: folder to write iter_0000000/<model> into.
        from_megatron: run directory or iter_* folder to read.
        to_hf: Hugging Face folder to write.
        model: which of a run's models.
        hf_config: folder with config.json and tokenizer, in place of the one that config.toml
            beside the checkpoint names.
        tensor_model_parallel_size: ranks that share every layer.
        pipeline_model_parallel_size: ranks that share the layers out.
        expert_model_parallel_size: ranks that share the experts of a layer out.
        expert_tensor_parallel_size: ranks that share an expert; as the other layers by default.
        verify: look for weights that are not finite, and compare the outputs with those of
            transformers on random tokens.
    """

    from_hf: Path | None = None
    to_megatron: Path | None = None
    from_megatron: Path | None = None
    to_hf: Path | None = None
    model: ModelName = "student"
    hf_config: Path | None = None
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    expert_model_parallel_size: int = 1
    expert_tensor_parallel_size: int | None = None
    verify: Switch = False

    def layout(self) -> ParallelConfig:
        """Return the layout of the ranks."""
        return ParallelConfig(
            tensor_model_parallel_size=self.tensor_model_parallel_size,
            pipeline_model_parallel_size=self.pipeline_model_parallel_size,
            expert_model_parallel_size=self.expert_model_parallel_size,
            expert_tensor_parallel_size=self.expert_tensor_parallel_size,
        )

    def num_ranks(self) -> int:
        """Return the least ranks that hold every layer and every expert once."""
        tensor_size = self.tensor_model_parallel_size
        expert_tensor_size = self.expert_tensor_parallel_size or tensor_size
        stage = math.lcm(tensor_size, expert_tensor_size * self.expert_model_parallel_size)
        return stage * self.pipeline_model_parallel_size


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and return the exit status."""
    rank = environment_rank()
    arguments = tyro.cli(
        Arguments, args=argv, description=__doc__, console_outputs=environment_rank() == 0
    )
    try:
        _check(arguments)
        arguments = _with_folders(arguments)
        arguments = _check_folder(arguments)
        place = parallel.initialize(arguments.layout(), seed=0)
        try:
            return convert(arguments, place)
        finally:
            parallel.shut_down()
    except (ValueError, OSError) as error:
        # An error can be one rank's alone, so every rank reports; only one at full length.
        message = str(error) if rank == 0 else f"rank {rank}: {str(error).splitlines()[0]}"
        print(f"convert_checkpoint: {message}", file=sys.stderr)
        return 2


def _check(arguments: Arguments) -> None:
    """Raise ValueError where the flags do not name one direction or a layout of these ranks."""
    given = [
        name
        for name in ("from_hf", "to_megatron", "from_megatron", "to_hf")
        if getattr(arguments, name) is not None
    ]
    if given not in (["from_hf", "to_megatron"], ["from_megatron", "to_hf"]):
        raise ValueError(
            "give --from-hf with --to-megatron, or --from-megatron with --to-hf; given: "
            + (", ".join(f"--{name.replace('_', '-')}" for name in given) or "none of them")
        )
    num_ranks = arguments.num_ranks()
    if num_ranks != environment_world_size():
        tensor = arguments.tensor_model_parallel_size
        pipeline = arguments.pipeline_model_parallel_size
        expert = arguments.expert_model_parallel_size
        with_experts = f" with expert_model_parallel_size {expert}" if expert > 1 else ""
        raise ValueError(
            f"tensor_model_parallel_size {tensor} x pipeline_model_parallel_size {pipeline}"
            f"{with_experts} needs {num_ranks} ranks, there are {environment_world_size()}; start "
            f"it with torchrun --nproc-per-node {num_ranks} tools/convert_checkpoint.py ..."
        )


def _with_folders(arguments: Arguments) -> Arguments:
    """Return the arguments with folders in place of names of the hub."""
    source, shape = arguments.from_hf, arguments.hf_config
    return replace(
        arguments,
        from_hf=Path(find_model("--from-hf", str(source), may_fetch=True)) if source else None,
        hf_config=Path(find_model("--hf-config", str(shape), may_fetch=True)) if shape else None,
    )


def _check_folder(arguments: Arguments) -> Arguments:
    """Return the arguments with the folder that config and tokenizer come from.

    Says what a run would refuse of its tokenizer, which the weights do not need.

    Raises ValueError with all that is wrong with what is read.
    """
    problems: list[str] = []
    if arguments.from_hf is not None:
        folder = with_tokenizer(read_folder("--from-hf", str(arguments.from_hf)))
        problems += folder_problems(folder, is_scorer=arguments.model == "discriminator")
    else:
        assert arguments.from_megatron is not None
        checkpoint = find_checkpoint(arguments.from_megatron)
        damage = damage_of(checkpoint)
        if damage:
            problems.append(f"the checkpoint {checkpoint} {damage}; copy it again, or name another")
        source = arguments.hf_config or find_hf_source(checkpoint, arguments.model)
        arguments = replace(arguments, hf_config=source)
        folder = with_tokenizer(read_folder("--hf-config", str(source)))
        problems += file_problems(folder)
    if problems:
        raise ValueError("\n".join(problems))
    if environment_rank() == 0:
        for problem in reading_problems(folder):
            print(f"convert_checkpoint: warning: a run would refuse {problem}", file=sys.stderr)
    return arguments


def convert(arguments: Arguments, place: parallel.Parallel) -> int:
    """Convert as the arguments say; all ranks call it. Returns the exit status."""
    model, layout = arguments.model, arguments.layout()
    if arguments.from_hf and arguments.to_megatron:
        hf_folder, written = arguments.from_hf, arguments.to_megatron
        folder, chunks = hf_to_megatron(hf_folder, written, model, layout, place)
        if arguments.verify:  # what is on the disk, not what is still in memory
            _forget(chunks)
            load_weights(folder, chunks)
    else:
        assert arguments.from_megatron and arguments.to_hf
        checkpoint = find_checkpoint(arguments.from_megatron)
        source = arguments.hf_config or find_hf_source(checkpoint, model)
        hf_folder = written = arguments.to_hf
        chunks = megatron_to_hf(checkpoint, source, written, model, layout, place)
    _say(place, f"wrote {written}")
    return _verify(chunks, hf_folder, arguments, place) if arguments.verify else 0


@torch.no_grad()
def _forget(chunks: list[torch.nn.Module]) -> None:
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.zero_()


def _verify(
    chunks: list[torch.nn.Module],
    hf_folder: Path,
    arguments: Arguments,
    place: parallel.Parallel,
) -> int:
    """Say which weights are not finite, and how far the outputs are from those of transformers.

    Returns the exit status.
    """
    model = arguments.model
    broken: list[str] = []
    if place.is_writer:
        broken = list(value_problems(read_folder("the folder", str(hf_folder))))
    for problem in broken:
        _say(place, problem)
    difference = relative_difference(chunks, hf_folder, model, arguments.layout(), place)
    kind = "scores" if model == "discriminator" else "logits"
    verdict = "equal" if difference <= TOLERANCE else "NOT equal"
    _say(
        place,
        f"{kind} are {verdict} to those of transformers: they differ by {difference:.1e} of the "
        f"largest, allowed is {TOLERANCE:.0e}",
    )
    return 0 if difference <= TOLERANCE and not place.gather_over_world(broken)[0] else 1


def _say(place: parallel.Parallel, message: str) -> None:
    if place.is_writer:
        print(f"convert_checkpoint: {message}")


if __name__ == "__main__":
    sys.exit(main())
