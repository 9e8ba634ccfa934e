"""Settings of every test.

The networks are so small that a second thread only waits for the first: on a machine that is busy
with other things the tests take ten times as long with two. `make test` runs two files at a time.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for programs that a test starts

os.environ.pop("COLUMNS", None)  # of whoever looks at the tests; no test's output is looked at

import torch

torch.set_num_threads(1)
