"""What every process of tests has from its beginning, because the one it is forked from has it.

The package and the tests themselves are imported again in each, from the copy with its fault.
"""

import pytest
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2

import megatron_gad.train
import tests.hf_reference

__all__ = ["megatron_gad", "modeling_llama", "modeling_qwen2", "pytest", "tests"]
