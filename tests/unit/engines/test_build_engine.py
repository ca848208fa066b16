"""The engine that a name in the configuration stands for."""

from typing import Any, cast

import pytest
import torch

from megatron_gad.config.rollout import RolloutConfig, SGLangConfig
from megatron_gad.engines.build import build_engine
from megatron_gad.engines.embedded import EmbeddedEngine
from megatron_gad.engines.sglang.server import ServerStartError
from megatron_gad.engines.sglang.site import ServerSite
from tests.tiny import make_hf_folder


def test_embedded_builds_the_engine_in_this_process(tmp_path):
    engine = build_engine(RolloutConfig(), make_hf_folder(tmp_path), "cpu", torch.float32)
    assert isinstance(engine, EmbeddedEngine)


def test_sglang_without_its_package_says_so_with_the_last_lines_of_its_log(tmp_path):
    folder = make_hf_folder(tmp_path / "model")
    settings = SGLangConfig(start_timeout_s=60)
    site = ServerSite(folder=tmp_path)
    with pytest.raises(ServerStartError, match=r"No module named '?sglang"):
        build_engine(RolloutConfig(engine="sglang"), folder, "cpu", torch.float32, settings, site)


def test_an_unknown_engine_is_refused_with_the_choices(tmp_path):
    unknown: Any = RolloutConfig(engine=cast(Any, "vllm"))
    with pytest.raises(ValueError, match="'vllm'; the choices are 'embedded', 'sglang' and"):
        build_engine(unknown, tmp_path, "cpu", torch.float32)
