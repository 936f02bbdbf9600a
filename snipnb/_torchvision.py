"""Import torchvision beside a CPU build of torch.

torchvision's wheel is compiled for the CUDA build of torch. Next to a CPU build its compiled operators do not load, and
its Python code stops at the first of them that it mentions. Declaring those two lets the import go through; the parts
used here (data set addresses, network definitions) are pure Python and never call them.
"""

from __future__ import annotations

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    import sys

    for _name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[_name]  # the half-imported package
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _schema in _SCHEMAS:
        _library.define(_schema)
    import torchvision

__all__ = ["torchvision"]
