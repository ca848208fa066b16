"""Pure tensor functions of the method. They import torch and ``types``, nothing else."""
