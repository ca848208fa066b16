"""From a Hugging Face folder to Megatron modules and back."""
