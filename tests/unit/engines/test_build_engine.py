"""The engine that a name in the configuration stands for."""

import pytest
import torch

from megatron_gad.engines.build import build_engine
from megatron_gad.engines.embedded import EmbeddedEngine
from tests.tiny import make_hf_folder


def test_embedded_builds_the_engine_in_this_process(tmp_path):
    engine = build_engine("embedded", make_hf_folder(tmp_path), "cpu", torch.float32)
    assert isinstance(engine, EmbeddedEngine)


def test_sglang_says_that_it_needs_its_extra_and_is_not_there_yet(tmp_path):
    with pytest.raises(ValueError, match=r"\[sglang\] extra.*use 'embedded'"):
        build_engine("sglang", tmp_path, "cpu", torch.float32)


def test_an_unknown_engine_is_refused_with_the_choices(tmp_path):
    with pytest.raises(ValueError, match="'vllm'; the only choice is 'embedded'"):
        build_engine("vllm", tmp_path, "cpu", torch.float32)
