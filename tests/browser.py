"""A headless Chromium, asked through the DevTools protocol on two pipes; needs no package."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_PATIENCE = 60.0  # seconds for one answer; the machine may be busy
_TO, _FROM = 3, 4  # the descriptors that Chromium reads and writes


@dataclass
class Page:
    """One tab.

    Attributes:
        complaints: what the console, the log and uncaught errors said, in order.
        requests: addresses that the page asked for.
    """

    to: int
    back: int
    session: str = ""
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _rest: bytes = b""

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events on the way are noted."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result = answer["result"]
                assert isinstance(result, dict)
                return result
            self._note(answer)

    def value(self, expression: str) -> Any:
        """What JavaScript in the page gives."""
        got = self.ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    def open(self, path: Path, *, width: int, dark: bool = False, ready: str) -> None:
        """Loads a file at a width, in a colour scheme, and waits until an expression is true."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + _PATIENCE
        while not self.value(f"document.readyState === 'complete' && Boolean({ready})"):
            assert time.monotonic() < end, f"never became true: {ready}; {self.complaints}"
            time.sleep(0.05)

    def picture(self, path: Path) -> Path:
        """A PNG of the whole page."""
        taken = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(taken["data"]))
        return path

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.back], [], [], _PATIENCE)
            assert ready, "the browser does not answer"
            found = os.read(self.back, 1 << 20)
            assert found, "the browser has ended"
            self._rest += found
        line, _, self._rest = self._rest.partition(b"\0")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        about, parameters = event.get("method"), event.get("params", {})
        if about == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.complaints.append(f"{parameters['type']}: {parameters['args']}")
        elif about == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif about == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(parameters["entry"]))
        elif about == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with one page and a profile of its own, ended with the block."""
    assert CHROMIUM is not None
    (read_to, to), (back, write_back) = os.pipe(), os.pipe()
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               "--no-first-run", "--remote-debugging-pipe",
               f"--user-data-dir={profile}")  # fmt: skip
    # A shell puts the pipes where Chromium looks for them: no code of ours runs after a fork.
    words = f'exec "$0" "$@" {_TO}<&{read_to} {_FROM}>&{write_back}'
    with subprocess.Popen(
        ["/bin/bash", "-c", words, CHROMIUM, *options, "about:blank"],
        pass_fds=(read_to, write_back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        os.close(read_to)
        os.close(write_back)
        page = Page(to, back)
        try:
            target = page.ask("Target.createTarget", url="about:blank")["targetId"]
            attached = page.ask("Target.attachToTarget", targetId=target, flatten=True)
            page.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.ask(f"{domain}.enable")
            yield page
        finally:
            with contextlib.suppress(Exception):
                page.session = ""
                page.ask("Browser.close")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            os.close(to)
            os.close(back)
