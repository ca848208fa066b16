"""The one place that turns an engine's name into an engine."""

from pathlib import Path

import torch

from megatron_gad.engines.base import Engine
from megatron_gad.engines.embedded import EmbeddedEngine
from megatron_gad.engines.replay import ReplayEngine
from megatron_gad.engines.sglang.engine import SGLangEngine
from megatron_gad.engines.sglang.launch import SGLangConfig


def build_engine(
    name: str,
    hf_folder: str | Path,
    device: torch.device | str,
    dtype: torch.dtype,
    max_batch_size: int = 256,
    sglang: SGLangConfig | None = None,
    replay: str = "",
) -> Engine:
    """Build the engine that samples responses; it is asleep until its first ``load_weights``.

    name: "embedded", "sglang" or "replay".
    hf_folder: the student's Hugging Face folder; gives the model's shape.
    device, dtype: where and in what the engine computes.
    max_batch_size: responses that the embedded engine decodes at a time.
    sglang: the servers of the SGLang engine; by default one with the package's defaults.
    replay: the run directory whose rollouts the replay engine gives again.

    Raises ValueError for a name without an engine, and ServerStartError for a server that does not
    come up.
    """
    if name == "embedded":
        return EmbeddedEngine(hf_folder, device, dtype, max_batch_size)
    if name == "sglang":
        return SGLangEngine(sglang or SGLangConfig(), hf_folder, device, dtype)
    if name == "replay":
        return ReplayEngine(replay)
    raise ValueError(
        f"rollout engine = {name!r}; the choices are 'embedded', 'sglang' and 'replay'"
    )
