"""From what a user writes to a device: `local`, `ssh://…`, `cmd:…`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from urllib.parse import quote, unquote

from compressor.device.command import CommandDevice, split_words
from compressor.device.job import Device
from compressor.device.local import LOCAL, LocalDevice
from compressor.device.ssh import SshDevice
from compressor.errors import UsageError

FORMS = "local, ssh://user@host:port or cmd:'program … {model} …'"
_SSH = re.compile(
    r"ssh://(?P<destination>(?:\w[\w.+-]*@)?(?:\w[\w.-]*|\[[0-9A-Fa-f:.]+\]))"
    r"(?::(?P<port>\d{1,5}))?/?(?:\?(?P<query>.*))?",
    re.ASCII,
)
_KEYS = ("python", "config", "timeout")


def parse_device(text: str) -> Device:
    """The device that a text means. Nothing is reached yet.

    `local` is this machine. `ssh://user@host:port` is another; after `?` may follow, joined by
    `&`, `python=PATH` (of Python there), `config=PATH` (for ssh, in place of the user's own) and
    `timeout=SECONDS` (for one measurement), with `%26` for an `&` in a path. `cmd:…` is a
    command that prints milliseconds; see `compressor.device.command.CommandDevice`.

    Raises:
        UsageError: the text has none of these forms.
    """
    if text == LOCAL:
        return LocalDevice()
    if text.startswith("cmd:"):
        return CommandDevice(text, split_words(text.removeprefix("cmd:")))
    found = _SSH.fullmatch(text)
    if found is None:
        raise UsageError(f"a device must be {FORMS}, but got {text!r}")
    port = None if found["port"] is None else int(found["port"])
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"a port must be from 1 to 65535, but got {port} in {text!r}")
    options = _options(found["query"] or "", text)
    # how it is reached may change from run to run, what runs there may not
    same = f"?python={quote(options['python'])}" if "python" in options else ""
    # ssh takes an address of version 6 without the brackets that a URL needs
    destination = found["destination"].replace("[", "").replace("]", "")
    return SshDevice(
        name=text.partition("?")[0].rstrip("/") + same,
        destination=destination,
        port=port,
        python=options.get("python", "python3"),
        config=_file(options.get("config")),
        timeout=_seconds(options.get("timeout")),
    )


def _options(query: str, text: str) -> dict[str, str]:
    options = {}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key not in _KEYS or not value:
            raise UsageError(
                f"after ? a device takes {', '.join(f'{each}=…' for each in _KEYS)}, but got "
                f"{pair!r} in {text!r}"
            )
        options[key] = unquote(value)
    return options


def _file(path: str | None) -> str | None:
    if path is None:
        return None
    if not Path(path).expanduser().is_file():
        raise UsageError(f"config must be a configuration file for ssh, but there is no {path!r}")
    return str(Path(path).expanduser())


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"timeout must be seconds above 0, but got {text!r}")
    return value
