"""The one place that turns an engine's name into an engine."""

from pathlib import Path

import torch

from megatron_gad.engines.base import Engine
from megatron_gad.engines.embedded import EmbeddedEngine


def build_engine(
    name: str,
    hf_folder: str | Path,
    device: torch.device | str,
    dtype: torch.dtype,
    max_batch_size: int = 256,
) -> Engine:
    """Build the engine that samples responses; it is asleep until its first ``load_weights``.

    name: "embedded".
    hf_folder: the student's Hugging Face folder; gives the model's shape.
    device, dtype: where and in what the engine computes.
    max_batch_size: responses decoded at a time.

    Raises ValueError for a name without an engine.
    """
    if name == "embedded":
        return EmbeddedEngine(hf_folder, device, dtype, max_batch_size)
    if name == "sglang":
        raise ValueError(
            "rollout engine = 'sglang' is not available yet: it will come with the [sglang] extra; "
            "use 'embedded'"
        )
    raise ValueError(f"rollout engine = {name!r}; the only choice is 'embedded'")
