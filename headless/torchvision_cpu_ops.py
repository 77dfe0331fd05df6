"""Lets torchvision be imported beside a CPU build of torch when it was itself built for CUDA.

Such a torchvision cannot load its C++ part, and `import torchvision` then fails for one reason: it describes shapes
for two operators that this part would have declared. Here they are declared, without an implementation, just before
the first import. Transforms and models then work; `torchvision.ops.nms` and its kind still say that they are missing.

`environment.py` copies this file into the virtual environment, and a `.pth` file there runs it when Python starts:
hence the standard library only, and nothing done until somebody asks for torchvision.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept = []  # a library that is collected takes its schemas with it


def declare() -> None:
    """Declares the two operators."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _kept.append(library)


class BeforeTorchvision(MetaPathFinder):
    """Declares the operators when torchvision is first looked for, and then steps aside."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None:
            declare()
        return spec


sys.meta_path.insert(0, BeforeTorchvision())
