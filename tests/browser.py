# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, spoken to over its DevTools protocol: what a page shows, asks for and complains of."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

from websockets.sync.client import ClientConnection, connect

from reimzul.core.process import spawn
from tests.waiting import until

_PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio",
    "--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank",
)  # fmt: skip
#: Seconds that an answer may take.
_PATIENCE_SECONDS = 30.0
#: The width and height of a laptop's screen, on which the cause of a failure is to be seen, and of a telephone's.
LAPTOP, TELEPHONE = (1366, 768), (390, 844)


class Tab:
    """A page of the browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._loaded = False
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.resize(*LAPTOP)

    def send(self, method: str, **params: Any) -> Any:
        """Call a method; events that come before its answer are noted."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(timeout=_PATIENCE_SECONDS))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message.get('error')}"
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(f"{details['text']} {details.get('exception', {}).get('description', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {params['message']}")
            self._connection.send(
                json.dumps({"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}})
            )

    def open(self, url: str) -> None:
        self.requests, self.problems, self._loaded = [], [], False
        self.send("Page.navigate", url=url)
        until(self._is_loaded, _PATIENCE_SECONDS, f"{url} is loaded")

    def _is_loaded(self) -> bool:
        self.evaluate("1")  # whatever has come meanwhile is noted
        return self._loaded

    def evaluate(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 20.0) -> Any:
        return until(lambda: self.evaluate(expression), seconds, expression)

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def set_dark(self, dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    @contextlib.contextmanager
    def without_scripts(self) -> Iterator[None]:
        self.send("Emulation.setScriptExecutionDisabled", value=True)
        try:
            yield
        finally:
            self.send("Emulation.setScriptExecutionDisabled", value=False)

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def save_screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def open_browser() -> Iterator[Callable[[], contextlib.AbstractContextManager[Tab]]]:
    """Run a browser; yields what opens a tab."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    assert program, f"none of {', '.join(_PROGRAMS)} is installed: tools/setup"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        argv = [program, *_FLAGS[:-1], f"--user-data-dir={folder}", _FLAGS[-1]]
        with spawn(argv):  # its processes write into the folder until all have ended
            port = until(lambda: _read_port(Path(folder)), 60, "Chromium listens")
            yield lambda: _open_tab(port)


def _read_port(folder: Path) -> int:
    file = folder / "DevToolsActivePort"
    lines = file.read_text().splitlines() if file.exists() else []
    return int(lines[0]) if lines else 0


@contextlib.contextmanager
def _open_tab(port: int) -> Iterator[Tab]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
    with urllib.request.urlopen(request, timeout=_PATIENCE_SECONDS) as answer:
        target = json.load(answer)
    with connect(target["webSocketDebuggerUrl"], max_size=None, proxy=None) as connection:
        yield Tab(connection)
        connection.send(json.dumps({"id": 10**6, "method": "Page.close"}))
        time.sleep(0)
