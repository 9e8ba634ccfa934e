"""Ray: found, started or connected to. Its only importer; knows no torch."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.errors import UsageError

_QUIET = {
    # Ray reports its use to its makers unless told not to.
    "RAY_USAGE_STATS_ENABLED": "0",
    # What a GPU-less worker sees of GPUs; said because Ray warns where nothing is said.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_TOKENS = "`ray get-auth-token` tells it, ~/.ray/auth_token or RAY_AUTH_TOKEN holds it"
_MODE = "RAY_AUTH_MODE"
_PATIENCE = 10.0  # seconds until something listens


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


def require_cluster(address: str | None) -> None:
    """Returns if there may be workers, without connecting. Before anything imports Ray.

    Args:
        address: as for `connected`.

    Raises:
        UsageError: Ray is not installed, or nothing listens at the address.
    """
    with _set(_wanted(address)):  # some of them count while Ray is imported
        require_ray()
    if address is not None:
        _require_somebody(address)


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
    with _set(_wanted(address)):
        ray = require_ray()
        if ray.is_initialized():
            yield ray
            return
        where: dict[str, Any] = {"address": address}
        if address is None:
            where = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        else:
            _require_somebody(address)
        try:
            try:
                ray.init(log_to_driver=False, logging_level="ERROR", **where)
            except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
                raise _none(address, str(error) or type(error).__name__) from error
            yield ray
        finally:
            ray.shutdown()


def _require_somebody(address: str) -> None:
    """Ray tries for minutes to reach a machine that is not there.

    Raises:
        UsageError: nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto`, or what Ray may understand
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise _none(address, str(error)) from error


def _none(address: str | None, said: str) -> UsageError:
    first = (said.strip().splitlines() or [""])[0]
    what = (
        "Ray could not be started here" if address is None else f"no cluster answers at {address}"
    )
    return UsageError(
        f"workers need a Ray cluster, but {what}: {first}; start one with `ray start --head`, and "
        "check that it runs the same version of Ray, and that its token is known here where it "
        f"asks for one ({_TOKENS})"
    )


def _wanted(address: str | None) -> dict[str, str]:
    """Variables that Ray is to find, those that somebody has set left out."""
    wanted = dict(_QUIET)
    if address is not None and _has_token():
        # `ray start` asks for a token as soon as there is one, but whoever connects does not show
        # it unless told to (Ray 2.60). A cluster that asks for none takes it as well.
        wanted[_MODE] = "token"
    return {name: value for name, value in wanted.items() if name not in os.environ}


def _has_token() -> bool:
    told = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return told or (Path.home() / ".ray" / "auth_token").is_file()


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment, for as long as the block takes.

    Ray sets `RAY_AUTH_MODE` too where it starts a cluster; that also ends with the block.
    """
    before = {name: os.environ.get(name) for name in (*variables, _MODE)}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
