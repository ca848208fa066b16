"""Lets torchvision be imported where its compiled part, built for CUDA, cannot be loaded.

Importing torchvision declares the shapes of two operators that only the compiled part defines.
Nothing here calls them; they have to exist. Read at the start of every interpreter of the SGLang
environment, so torch is imported only when torchvision is about to be.
"""

import sys
from importlib.abc import MetaPathFinder

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _BeforeTorchvision(MetaPathFinder):
    """Defines the operators when torchvision is first looked for, and finds nothing itself."""

    def __init__(self) -> None:
        self.libraries = []

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision" and not self.libraries:
            from torch.library import Library  # noqa: PLC0415 (only where it is needed)

            self.libraries.append(Library("torchvision", "DEF"))
            for schema in OPERATORS:
                self.libraries[0].define(schema)
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
