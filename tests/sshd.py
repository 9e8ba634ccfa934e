"""A real OpenSSH server on loopback, with keys and known hosts of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_HOW = "on Debian: apt-get install openssh-server"


@dataclass(frozen=True)
class Server:
    """Where it listens and what lets a client in.

    Attributes:
        port: on 127.0.0.1.
        folder: of its files; `config` is the client's configuration.
    """

    port: int
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config"

    def device(self, **options: object) -> str:
        """A device's text."""
        pairs = "&".join(f"{k}={v}" for k, v in {"config": self.config, **options}.items())
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}?{pairs}"

    def client(self, name: str, **changes: object) -> Path:
        """Another configuration of the client."""
        options = {
            "IdentityFile": self.folder / "user",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            **changes,
        }
        path = self.folder / name
        path.write_text("".join(f"{key} {value}\n" for key, value in options.items()))
        return path


def program(name: str) -> str:
    """The path of one of OpenSSH's programs; without it the test is skipped."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed ({_HOW})")
    return found


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Starts the server as the current user, and stops it."""
    daemon, keygen, _ = program("sshd"), program("ssh-keygen"), program("ssh")
    for name in ("host", "user", "stranger"):
        command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
        subprocess.run(command, check=True)
    if os.geteuid() == 0:  # what a service's start would make; sshd refuses to run without
        Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
    server = Server(_free_port(), folder)
    public = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {public}")
    server.client("config")
    (folder / "sshd_config").write_text(
        f"Port {server.port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile none\n"
        f"AuthorizedKeysFile {folder / 'user.pub'}\nUsePAM no\nStrictModes no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [daemon, "-D", "-e", "-f", folder / "sshd_config"], stdout=log, stderr=log
        )
        try:
            _wait(process, server)
            yield server
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], server: Server) -> None:
    for _ in range(100):
        if process.poll() is not None:
            pytest.skip(f"sshd does not start: {(server.folder / 'log').read_text()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", server.port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("sshd does not listen")
