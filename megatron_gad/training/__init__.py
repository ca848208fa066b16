"""Everything that trains: importing it first makes megatron.core importable without CUDA."""

from megatron_gad.training.cpu import install_if_needed

install_if_needed()
