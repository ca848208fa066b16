"""What a checkpoint that is written in the background takes of a host's memory."""

from megatron_gad.config.run import RunConfig
from megatron_gad.models.families import load_hf_config
from megatron_gad.planning.devices import GIB
from megatron_gad.planning.from_config import configured_layout
from megatron_gad.planning.layout import Layout, stage_parameters
from megatron_gad.planning.shapes import ModelShape, shape_from_config

FLOAT32_BYTES = 4


def saved_bytes(shape: ModelShape, layout: Layout, bf16: bool, is_scorer: bool) -> int:
    """Return the bytes that one rank writes of a model with its optimizer, on the fullest stage.

    n (b_weight + b_state) / C for the n parameters of a rank, with C the ranks that hold the same:
    each writes an equal share. States are both moments and main weights, all in float32; in fp32
    only the distributed optimizer has main weights beside the weights.
    """
    weight = 2 if bf16 else FLOAT32_BYTES
    has_main = bf16 or layout.distributed_optimizer
    each = weight + (3 if has_main else 2) * FLOAT32_BYTES
    return max(
        (-(-stage.dense // layout.copies) + -(-stage.expert // layout.expert_copies)) * each
        for stage in stage_parameters(shape, layout, is_scorer)
    )


def background_bytes(config: RunConfig, world_size: int) -> int:
    """Return the host memory of one rank's copies of all that a checkpoint holds.

    With one snapshot of the student's weights, as a reference is.
    """
    student = _shape(config.student.path)
    discriminator = _shape(config.discriminator.path or config.student.path)
    layout = configured_layout(config, world_size, has_experts=discriminator.num_experts > 0)
    bf16 = config.compute.bf16
    total = saved_bytes(student, layout, bf16, is_scorer=False)
    snapshot = 2 if bf16 else FLOAT32_BYTES
    total += max(s.total for s in stage_parameters(student, layout, False)) * snapshot
    if config.uses_discriminator:
        total += saved_bytes(discriminator, layout.of_discriminator, bf16, is_scorer=True)
    return total


def check_background_save(
    config: RunConfig, world_size: int, ranks_of_host: int, available: int
) -> None:
    """Raise ValueError if a host's memory does not hold the copies of its ranks.

    available: bytes that the host has left.
    """
    if not config.checkpoint.async_save:
        return
    needed = background_bytes(config, world_size) * ranks_of_host
    if needed > available:
        raise ValueError(
            f"checkpoint.async_save = true keeps copies of {needed / GIB:.1f} GiB for "
            f"{ranks_of_host} rank(s) on this host, which has {available / GIB:.1f} GiB left; "
            "leave it out, or spread the run over more hosts"
        )


def _shape(folder: str) -> ModelShape:
    return shape_from_config(load_hf_config(folder).to_dict())
