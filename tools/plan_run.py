r"""Plan memory and time of a run on GPUs that need not be here.

    python tools/plan_run.py run.toml --gpus 16 --gpu-type h100-80g [--json plan.json]

Formulas and assumptions are in docs/planning.md. What is here of models and data is checked as a
run checks it. Exit status: 0 a layout fits, 1 none does, 2 bad input.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from megatron_gad.checks.inputs import look_at_what_is_here
from megatron_gad.config.run import RunConfig, config_kind
from megatron_gad.config.toml import read_toml
from megatron_gad.models.hub import with_model_folders
from megatron_gad.planning.choice import caveats
from megatron_gad.planning.devices import Assumptions, device_of
from megatron_gad.planning.from_config import (
    configured_layout,
    count_rows,
    lengths_of,
    plan_request,
)
from megatron_gad.planning.layout import Layout
from megatron_gad.planning.of_run import bounded, engine_use, free_servers
from megatron_gad.planning.report import format_report, to_json
from megatron_gad.planning.request import Request
from megatron_gad.planning.saving import SaveCopies, save_copies
from megatron_gad.planning.search import find_plans, plan_layout
from megatron_gad.planning.shapes import read_shape


@dataclass(frozen=True)
class Arguments:
    """What is planned.

    Attributes:
        config: the run's TOML file.
        gpus: number of GPUs.
        gpu_type: a100-80g, h100-80g, h200-141g or b200-192g; the part before the dash will do.
        model_config: config.json of the student, or the name of a published model, if its folder is
            not here.
        json: file for the plan as JSON.
        prompt_tokens: mean tokens of a prompt.
        response_tokens: mean tokens of a response, the teacher's and the student's.
        num_prompts: usable rows of the data set; read, checked and counted if they are here.
        assume: what no data sheet says.
    """

    config: tyro.conf.Positional[Path]
    gpus: int
    gpu_type: str
    model_config: Path | None = None
    json: Path | None = None
    prompt_tokens: int = 150
    response_tokens: int = 400
    num_prompts: int | None = None
    assume: Assumptions = field(default_factory=Assumptions)


def main() -> int:
    """Print the plan, write it where asked, and return the exit status."""
    arguments = tyro.cli(Arguments, description=__doc__)
    try:
        config = _with_cached_models(read_toml(arguments.config, config_kind()))
        refused, num_rows = look_at_what_is_here(config, arguments.num_prompts is None)
        request = _request(arguments, config, num_rows)
    except ValueError as error:
        print(f"plan_run: {error}", file=sys.stderr)
        return 2
    has_experts = request.discriminator.num_experts > 0
    layout = configured_layout(config, request.num_gpus, has_experts)
    as_configured = replace(request, engine=engine_use(config, request, layout))
    if as_configured.engine.is_here:
        request = replace(request, engine=free_servers(config))
    else:
        request = as_configured
    try:
        configured = plan_layout(as_configured, layout, config.schedule.leaves)
    except ValueError as error:
        configured = str(error)
    problem, plans = "", []
    try:
        plans = find_plans(request, layout)
    except ValueError as error:
        problem = str(error)
    print(format_report(request, configured, plans))
    for line in _flags_to_change(config, layout):
        print(line)
    print(f"Configured layout: {_copies(config, request, layout).describe()}")
    for caveat in caveats(as_configured):
        print(f"Configured layout: {caveat}")
    if problem:
        print(f"plan_run: {problem}", file=sys.stderr)
    for each in refused:
        print(f"plan_run: a run would refuse this: {each}", file=sys.stderr)
    if arguments.json:
        found = to_json(request, configured, plans) | {"problem": problem or None}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 2 if refused else 0 if plans else 1


def _copies(config: RunConfig, request: Request, layout: Layout) -> SaveCopies:
    """Return what a save copies to the host."""
    return save_copies(
        request.student,
        request.discriminator if request.has_discriminator else None,
        layout,
        config.compute.bf16,
        request.has_reference,
        config.checkpoint.async_save,
    )


def _with_cached_models(config: RunConfig) -> RunConfig:
    """Return a configuration with folders for names of the hub, if they are on this machine."""
    try:
        return with_model_folders(config, may_fetch=False)
    except ValueError:
        return config  # a name is enough to plan with


def _flags_to_change(config: RunConfig, layout: Layout) -> Iterator[str]:
    """Yield what the layouts that were found need beside their flags."""
    if layout.discriminator is not None:
        yield "Layouts other than the configured one are of both models: with their flags take the"
        yield "sizes out of [discriminator]."
    if config.rollout.engine == "embedded":
        yield "Layouts other than the configured one sample on SGLang servers: with their flags set"
        yield "rollout.engine = 'sglang'. The configured one has one engine a copy of the model."
    if config.schedule.leaves is not None:
        yield "With the flags of other layouts take schedule.leaves out: they choose who leaves."


def _request(arguments: Arguments, config: RunConfig, num_rows: int | None) -> Request:
    """Put the question together; num_rows: usable ones of the data set, if they were read.

    Raises:
        ValueError: something cannot be read or planned; names it.
    """
    problems = arguments.assume.problems()
    if arguments.gpus < 1:
        problems.append(f"--gpus {arguments.gpus}; it has to be 1 or more")
    if not config.stages:
        problems.append("stages = [] plans nothing; name at least one")
    if problems:
        raise ValueError("\n".join(problems))
    device = device_of(arguments.gpu_type)
    compute, path = config.compute, config.discriminator.path
    if compute.fp8_format and not device.fp8_flops:
        raise ValueError(f"compute.fp8_format = {compute.fp8_format!r}: {device.name} has no FP8")
    student = read_shape(arguments.model_config or Path(config.student.path))
    request = plan_request(
        config,
        (student, read_shape(Path(path)) if path else student),
        device,
        arguments.gpus,
        lengths_of(config.data, arguments.prompt_tokens, arguments.response_tokens),
        bounded(arguments.assume, device, config.schedule.device_memory_gib),
    )
    if "white_box" in config.stages and not config.white_box.is_served:
        request = replace(request, teacher=read_shape(Path(config.white_box.teacher)))
    num_prompts = arguments.num_prompts or num_rows or count_rows(config.data)
    return replace(request, num_data_prompts=num_prompts)


if __name__ == "__main__":
    sys.exit(main())
