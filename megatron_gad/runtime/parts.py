"""The costly parts of a run, built from its configuration: engine, models, turns."""

import logging
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from torch.distributed import PrefixStore, TCPStore

from megatron_gad.config.run import RunConfig
from megatron_gad.data.chat import load_tokenizer
from megatron_gad.data.codecs import Codecs
from megatron_gad.engines.base import Engine
from megatron_gad.engines.build import build_engine
from megatron_gad.engines.replay import ROLLOUTS_FOLDER
from megatron_gad.engines.sglang.scoring import TeacherServer
from megatron_gad.engines.sglang.sharing import Sharing
from megatron_gad.engines.sglang.site import ServerSite
from megatron_gad.environment import local_world_size, master_address
from megatron_gad.models.families import load_hf_config, mixture_of
from megatron_gad.models.hf_folder import read_tensors
from megatron_gad.planning.choice import describe_residency
from megatron_gad.planning.of_run import plan_residency
from megatron_gad.planning.saving import check_save, copies_of_run
from megatron_gad.runtime.sampler import Sampler
from megatron_gad.runtime.turns import Turns, Watch
from megatron_gad.training.checkpoint_digests import check_model_folder
from megatron_gad.training.finite import are_finite
from megatron_gad.training.parallel import Parallel, add_layout
from megatron_gad.training.teacher import Teacher
from megatron_gad.training.trainer import Trainer, TrainerSettings

logger = logging.getLogger(__name__)


def build_sampler(config: RunConfig, codecs: Codecs, parallel: Parallel) -> Sampler:
    """Start this rank's engine, if the stages sample and the rank owns one."""
    folder = Path(config.checkpoint.save) / ROLLOUTS_FOLDER if config.rollout.record else None
    engine = _build_engine(config, parallel) if config.uses_engine else None
    return Sampler(engine, codecs.student, parallel, folder, codecs.scorer)


def check_models(config: RunConfig, parallel: Parallel) -> None:
    """Compare the models' files with their digests, if they have some. All ranks call it."""
    if config.checkpoint.verify_checkpoint:
        for key in ("student", "discriminator"):
            if path := getattr(config, key).path:
                check_model_folder(f"{key}.path", path, parallel)
        if "white_box" in config.stages and not config.white_box.is_served:
            check_model_folder("white_box.teacher", config.white_box.teacher, parallel)


def check_served_teacher(config: RunConfig, parallel: Parallel) -> None:
    """Compare the tokenizer of a teacher's server with the student's. All ranks call it.

    Raises ValueError, alike on all ranks, if they differ or the server does not answer.
    """
    if "white_box" not in config.stages or not config.white_box.is_served:
        return
    problem, url = "", config.white_box.teacher
    if parallel.is_writer:
        try:
            server = TeacherServer(url, config.sglang.request_timeout_s)
            folder = config.student.path
            tokenizer = load_tokenizer(Path(folder), load_hf_config(folder))
            difference = server.find_difference(tokenizer)
            if difference:
                problem = (
                    f"white_box.teacher = {url!r} gives probabilities of other tokens: "
                    f"{difference}; serve a teacher of the student's family"
                )
        except ValueError as error:
            problem = str(error)
    problem = parallel.gather_over_world(problem)[0]
    if problem:
        raise ValueError(problem)


def build_student(config: RunConfig, parallel: Parallel) -> Trainer:
    """Make the student with the weights of its folder."""
    hf_config = load_hf_config(config.student.path)
    settings = TrainerSettings(config.parallel, config.compute, config.seed, config.optimizer)
    student = Trainer.language_model(hf_config, config.student, parallel, settings)
    student.load_hf_weights(config.student.path)
    check_finite("student.path", config.student.path, student)
    return student


def check_finite(key: str, folder: str, trainer: Trainer | Teacher) -> None:
    """Raise ValueError, alike on all ranks, if weights that were read from a folder are no numbers.

    key: the setting that names the folder.
    """
    if trainer.has_finite_weights():
        return
    names = {name for name, _ in read_tensors(Path(folder), ())}
    tensors = read_tensors(Path(folder), names)
    broken = sorted(name for name, tensor in tensors if not are_finite([tensor]))
    shown = ", ".join(broken[:4]) + (f" and {len(broken) - 4} more" if broken[4:] else "")
    raise ValueError(
        f"{key} = {folder!r} holds NaN or infinite weights in {shown or 'this precision'}; "
        "get the model again, or go back to a checkpoint from before"
    )


def build_discriminator(config: RunConfig, student: Trainer) -> Trainer:
    """Make the discriminator, in its own layout; its weights are undefined until loaded."""
    own = config.discriminator
    hf_config = load_hf_config(own.path) if own.path else student.hf_config
    layout = config.discriminator_layout(mixture_of(hf_config) is not None)
    is_as_student = layout == config.parallel
    timeout = config.watchdog.collective_timeout
    place = student.parallel if is_as_student else add_layout(layout, config.seed, timeout)
    return Trainer.scorer(hf_config, own, place, replace(student.settings, layout=layout))


def build_turns(config: RunConfig, parallel: Parallel, sampler: Sampler, watch: Watch) -> Turns:
    """Choose who leaves the device while others work, and say so."""
    # What lies on the host already is only copied for a write in the background.
    if parallel.device.type == "cuda" or config.checkpoint.async_save:
        copies = copies_of_run(config, parallel.world_size)
        check_save(copies, local_world_size(), psutil.virtual_memory().available)
    residency = plan_residency(config, parallel.world_size)
    if parallel.is_writer:
        logger.info("schedule: %s", "; ".join(describe_residency(residency)))
    return Turns(residency.memory.leaves, sampler, parallel, watch)


def _build_engine(config: RunConfig, parallel: Parallel) -> Engine | None:
    if not parallel.is_engine_rank:
        return None
    dtype = torch.bfloat16 if config.compute.bf16 else torch.float32
    urls = config.sglang.urls[parallel.data_rank :: parallel.data_size]
    sharing = _sharing(config, parallel) if config.rollout.engine == "sglang" else None
    return build_engine(
        config.rollout,
        config.student.path,
        parallel.device,
        dtype,
        replace(config.sglang, urls=urls),
        ServerSite(parallel.group_devices(), Path(config.checkpoint.save), sharing),
    )


def _sharing(config: RunConfig, parallel: Parallel) -> Sharing | None:
    """Return the ranks whose servers have one queue, through a store for them alone.

    Servers at URLs serve all ranks. Those that a run starts listen on their own host, so they serve
    its ranks. All engine ranks call it.
    """
    host = 0 if config.sglang.urls else parallel.rank // local_world_size()
    hosts = parallel.gather_over_data(host)
    if len(set(hosts)) == len(hosts):
        return None  # each is alone
    address, is_first = master_address(), parallel.data_rank == 0
    own = TCPStore(address, 0, is_master=True, wait_for_workers=False) if is_first else None
    (port, *_) = parallel.gather_over_data(own.port if own is not None else 0)
    store = own or TCPStore(address, port, is_master=False, wait_for_workers=False)
    return Sharing(PrefixStore(f"host {host}", store), hosts.count(host))
