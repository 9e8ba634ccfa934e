"""What every benchmark needs: the samples as modules, the machine, the versions."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tests.vision import torchvision

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
_PACKAGES = (
    "torch", "torch-pruning", "nvidia-modelopt", "torchprofile", "onnx", "onnxruntime", "numpy",
    "torchvision",
)  # fmt: skip


def sample(name: str) -> ModuleType:
    """A sample as a module; what lies beside it can be imported, as for the command line."""
    if name.startswith("imagenet"):
        torchvision()
    if str(SAMPLES) not in sys.path:
        sys.path.insert(0, str(SAMPLES))
    spec = importlib.util.spec_from_file_location(name, SAMPLES / f"{name}.py")
    assert spec is not None  # noqa: S101  (the file is part of this repository)
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def environment() -> dict[str, object]:
    """Processor, cores and versions, for the head of every table."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def mean_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, as text."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Rank correlation of two lists; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(np.asarray(one)), _ranks(np.asarray(other)))[0, 1])


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
