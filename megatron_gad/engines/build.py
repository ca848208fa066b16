"""The one place that turns an engine's name into an engine."""

from pathlib import Path

import torch

from megatron_gad.config.rollout import RolloutConfig, SGLangConfig
from megatron_gad.engines.base import Engine
from megatron_gad.engines.replay import ReplayEngine
from megatron_gad.engines.sglang.site import ServerSite


def build_engine(
    rollout: RolloutConfig,
    hf_folder: str | Path,
    device: torch.device | str,
    dtype: torch.dtype,
    sglang: SGLangConfig | None = None,
    site: ServerSite | None = None,
) -> Engine:
    """Build the engine that samples responses; it is asleep until its first ``load_weights``.

    hf_folder: the student's Hugging Face folder; gives the model's shape.
    device, dtype: where and in what the engine computes.
    sglang: the servers of the SGLang engine; by default one with the package's defaults.
    site: where its servers run, and for which ranks.

    Raises ValueError for a name without an engine, and ServerStartError for a server that does not
    come up.
    """
    # Both import transformers' models, which takes seconds; ranks without an engine do not.
    if rollout.engine == "embedded":
        from megatron_gad.engines.embedded import EmbeddedEngine  # noqa: PLC0415

        return EmbeddedEngine(hf_folder, device, dtype, rollout.max_total_tokens)
    if rollout.engine == "sglang":
        from megatron_gad.engines.sglang.engine import SGLangEngine  # noqa: PLC0415

        return SGLangEngine(sglang or SGLangConfig(), hf_folder, device, dtype, site)
    if rollout.engine == "replay":
        return ReplayEngine(rollout.replay)
    raise ValueError(
        f"rollout engine = {rollout.engine!r}; the choices are 'embedded', 'sglang' and 'replay'"
    )
