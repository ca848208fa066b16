"""Models of the Hugging Face Hub by name: ``Qwen/Qwen2.5-0.5B-Instruct`` or with ``@REVISION``.

A name is found in the hub's cache on this machine (``HF_HOME``), or fetched into it. What is in the
cache is not asked for again, so a run that resumes reads the files that it began with.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from megatron_gad.config.run import RunConfig
from megatron_gad.files import replace_text
from megatron_gad.models.hf_headers import weight_files

NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
SNAPSHOT = re.compile(
    r".*/models--(?P<owner>.+?)--(?P<name>[^/]+)/snapshots/(?P<revision>[0-9a-f]+)"
)
# Weights, configuration, tokenizer and chat template; no pickles and no code.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
# When this process began: what the hub refused after that is not asked for again.
STARTED = time.time()


def is_hub_name(path: str) -> bool:
    """Return whether a setting names a model of the hub: there is no such path, nor its parent."""
    return NAME.fullmatch(path) is not None and not Path(path).parent.exists()


def find_model(key: str, path: str, may_fetch: bool) -> str:
    """Return the folder of a model: the path itself, or a hub name's snapshot on this machine.

    Several processes of a node may call this at once: one of them fetches, or is refused, for all.

    Args:
        key: the setting, for messages.
        path: a folder, NAME or NAME@REVISION.
        may_fetch: fetch what is not in the cache; else only look there.

    Raises:
        ValueError: the model is not in the cache, and may not or cannot be fetched.
    """
    if not is_hub_name(path):
        return path
    named = NAME.fullmatch(path)
    assert named is not None, path
    name, revision = named["name"], named["revision"] or "main"
    folder = _cached(name, revision)
    if folder is not None:
        return folder
    command = f"hf download {name}" + (f" --revision {revision}" if named["revision"] else "")
    if not may_fetch:
        raise ValueError(
            f"{key} = {path!r} is neither a folder nor in the hub's cache on this machine; "
            f"a run fetches it, or do so now: {command}"
        )
    return _fetched(f"{key} = {path!r}", name, revision, command)


def with_model_folders(config: RunConfig, may_fetch: bool) -> RunConfig:
    """Return a configuration whose models are folders; raises ValueError as ``find_model``."""
    return _with_paths(config, lambda key, path: find_model(key, path, may_fetch))


def with_model_names(config: RunConfig) -> RunConfig:
    """Return a configuration whose snapshots of the hub are NAME@REVISION, on any machine."""
    return _with_paths(config, lambda key, path: name_of(path))


def _with_paths(config: RunConfig, change: Callable[[str, str], str]) -> RunConfig:
    """change: (setting, its value) -> its new value."""
    student, discriminator, taught = config.student, config.discriminator, config.white_box
    teacher = change("white_box.teacher", taught.teacher)
    return replace(
        config,
        student=replace(student, path=change("student.path", student.path)),
        discriminator=replace(discriminator, path=change("discriminator.path", discriminator.path)),
        white_box=replace(taught, teacher=teacher),
    )


def name_of(path: str) -> str:
    """Return NAME@REVISION for a snapshot in a hub's cache, and any other path as it is."""
    found = SNAPSHOT.fullmatch(path)
    return f"{found['owner']}/{found['name']}@{found['revision']}" if found else path


def _cached(name: str, revision: str) -> str | None:
    """Return the snapshot's folder if all of it is in the cache."""
    # A second of every start, which runs with a folder of their own should not pay.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    try:
        folder = snapshot_download(name, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return folder if _is_whole(Path(folder)) else None


def _is_whole(folder: Path) -> bool:
    """Return whether a fetch into this folder went through, as far as the weights go."""
    try:
        files = [folder / "config.json", *weight_files(folder)]
    except ValueError:
        return False
    return all(file.exists() for file in files)


def _fetched(named: str, name: str, revision: str, command: str) -> str:
    from filelock import FileLock  # noqa: PLC0415
    from huggingface_hub import constants, snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    label = f".megatron_gad--{name.replace('/', '--')}--{revision.replace('/', '--')}"
    refusal = cache / f"{label}.refused"
    with FileLock(cache / f"{label}.lock"):
        # Another process of this node may have fetched it meanwhile, or, as the hub retries for
        # half a minute, waited in vain: since this process began, none has to do so again.
        folder = _cached(name, revision)
        if folder is not None:
            return folder
        if refusal.exists():
            refused = json.loads(refusal.read_text(encoding="utf-8"))
            if refused["time"] >= STARTED:
                raise ValueError(f"{named} {refused['said']}")
        try:
            return snapshot_download(name, revision=revision, allow_patterns=WANTED)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            said = (
                f"is no folder here, and the hub does not give it ({reason}); correct the path, or "
                f"fetch the model on a machine with a network: {command}"
            )
            replace_text(refusal, json.dumps({"time": time.time(), "said": said}))
            raise ValueError(f"{named} {said}") from error
