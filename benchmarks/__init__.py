"""Where the figures in the README and the docs come from: `python -m benchmarks.NAME`."""

import os

# The searches multiply small matrices: more threads only wait for each other. Must be set before
# numpy is imported; torch has its own threads and is not touched.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
