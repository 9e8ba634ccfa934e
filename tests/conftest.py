"""Settings of every test.

The networks are so small that a second thread only waits for the first: on a machine that is busy
with other things the tests take ten times as long with two. `make test` runs two files at a time.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for programs that a test starts

# What a search finds with few evaluations hangs on the last digits of the surrogate, and numpy's
# OpenBLAS adds up in another order on processors with AVX-512. Tests that hold how good a found
# network is, on problems drawn with fixed seeds, are for the order of all others.
_PROCESSOR = Path("/proc/cpuinfo")
if _PROCESSOR.exists() and "avx512f" in _PROCESSOR.read_text(encoding="utf-8"):
    os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")

os.environ.pop("COLUMNS", None)  # of whoever looks at the tests; no test's output is looked at

import torch  # noqa: E402  (reads the variables above)

torch.set_num_threads(1)
