"""From a Hugging Face folder to Megatron modules and back."""

from megatron_gad.training.cpu import install_if_needed

install_if_needed()
