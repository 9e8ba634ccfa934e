"""torchvision on a build of torch without torchvision's compiled operators.

torchvision's Python code runs on any torch, but importing it needs two operator schemas that its
compiled part declares. Where that part does not load (a CPU-only torch beside the default
torchvision wheel), the schemas are declared here, for tests and benchmarks only.
"""

from __future__ import annotations

import importlib
import sys
from functools import lru_cache
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@lru_cache(maxsize=1)
def torchvision() -> ModuleType:
    """The torchvision package; declares its operators only if the normal import fails."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare()
        return importlib.import_module("torchvision")


@lru_cache(maxsize=1)
def _declare() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    return library
