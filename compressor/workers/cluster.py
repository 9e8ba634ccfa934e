"""Ray: found, started or connected to. Its only importer; knows no torch."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compressor.errors import UsageError

_QUIET = {
    # Ray reports its use to its makers unless told not to.
    "RAY_USAGE_STATS_ENABLED": "0",
    # What a GPU-less worker sees of GPUs; said because Ray warns where nothing is said.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def require_ray() -> Any:
    """The package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.cloudpickle")
    except ImportError as error:
        raise UsageError(
            "more than one worker needs Ray, which cannot be imported "
            f"({error}); install it with pip install 'layernas-compressor[ray]', or leave "
            "--workers and --ray out"
        ) from error
    return ray


@contextmanager
def connected(address: str | None, cpus: int) -> Iterator[Any]:
    """Ray, connected: to the cluster at an address, or to one of this machine alone.

    Where this process is connected already, that cluster is used, and stays connected.

    Args:
        address: as `ray.init` takes it; None starts Ray here, and ends it afterwards.
        cpus: that Ray may deal out where it is started here.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """
    ray = require_ray()
    if ray.is_initialized():
        yield ray
        return
    where: dict[str, Any] = {"address": address}
    if address is None:
        where = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update({name: os.environ.get(name, value) for name, value in _QUIET.items()})
    try:
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **where)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            what = "Ray could not be started here" if address is None else "no cluster answers"
            raise UsageError(
                f"workers need a Ray cluster, but {what}{'' if address is None else ' at '}"
                f"{address or ''}: {first}; start one with `ray start --head`, and check that "
                "it runs the same version of Ray"
            ) from error
        yield ray
    finally:
        ray.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
