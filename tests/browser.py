"""A real browser without a window, driven by its own DevTools protocol: Chromium, where it is installed.

aiohttp, which Ray's dashboard needs anyway, speaks the protocol; nothing else has to be installed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
START_S = 60.0
ANSWER_S = 60.0
_DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


def find_browser() -> str | None:
    """Its command: $BROWSER_COMMAND, or the first that is installed."""
    asked = os.environ.get("BROWSER_COMMAND")
    return asked or next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Seen:
    """What became of a page."""

    seconds: float
    """Until it was loaded and drawn."""
    errors: list[str] = field(default_factory=list)
    """What stood in its console as an error, exceptions and failed requests among them."""
    requests: list[str] = field(default_factory=list)
    """All addresses that were asked for."""


class Tab:
    """One tab. Every method waits until the browser has answered."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket = loop, socket
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol; raises RuntimeError with what the browser says against it."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, params), ANSWER_S))

    def open(self, url: str, *, until: str | None = None, timeout: float = 60.0) -> Seen:
        """Loads ``url``, and waits until the expression ``until`` holds there."""
        # From a page that differs only behind the # nothing would be loaded.
        self._load("about:blank", timeout)
        began = time.perf_counter()
        self._load(url, timeout)
        self.evaluate(_DRAWN)
        seconds = time.perf_counter() - began
        if until is not None:
            self.wait(until, timeout=timeout)
        return Seen(seconds, self.errors(), self._requests())

    def _load(self, url: str, timeout: float) -> None:
        self._events.clear()
        self.call("Page.navigate", url=url)
        self._loop.run_until_complete(asyncio.wait_for(self._event("Page.loadEventFired"), timeout))

    def wait(self, expression: str, *, timeout: float = 60.0) -> None:
        """Until ``expression`` holds; raises TimeoutError."""
        end = time.monotonic() + timeout
        while not self.evaluate(f"Boolean({expression})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} does not hold after {timeout:g} s: {self.text()[:2000]}")
            time.sleep(0.2)

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript, once a promise has been kept."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:1000])
        return answer["result"].get("value")

    def text(self) -> str:
        """What a reader sees of the page."""
        return str(self.evaluate("document.body.innerText"))

    def errors(self) -> list[str]:
        """Errors in the console since the page was opened."""
        self.evaluate("0")  # takes in what has been sent
        found = []
        for event in self._events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description") or details["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
                found.append(" ".join(str(a.get("value", a.get("description", ""))) for a in params["args"]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found

    def screenshot(self, path: Path, *, width: int = 1280, height: int | None = None, dark: bool = False) -> Path:
        """A picture of the page, all of it unless a ``height`` is given."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.size(width, height or 900)
        self.evaluate(_DRAWN)
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": width, "height": height or min(size["height"], 16_000), "scale": 1}
        answer = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def size(self, width: int, height: int) -> None:
        """Of the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def _requests(self) -> list[str]:
        sent = (
            event["params"]["request"]["url"]
            for event in self._events
            if event["method"] == "Network.requestWillBeSent"
        )
        return [url for url in sent if not url.startswith("data:")]

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        number = self._number
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await self._message()
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return dict(message["result"])

    async def _event(self, method: str) -> None:
        while not any(event["method"] == method for event in self._events):
            await self._message()

    async def _message(self) -> dict[str, Any]:
        message: dict[str, Any] = await self._socket.receive_json()
        if "method" in message:
            self._events.append(message)
        return message


@contextmanager
def browsing(command: str) -> Iterator[Tab]:
    """A browser with one empty tab, its profile new; ended with all its processes."""
    profile = tempfile.mkdtemp(prefix="detsweep-browser-")
    arguments = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
    arguments += ("--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={profile}")
    process = subprocess.Popen(
        [command, *arguments, "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    loop = asyncio.new_event_loop()
    try:
        port = _port(Path(profile) / "DevToolsActivePort", process)
        session, socket = loop.run_until_complete(_connect(port))
        try:
            tab = Tab(loop, socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                tab.call(f"{domain}.enable")
            tab.size(1280, 900)
            yield tab
        finally:
            loop.run_until_complete(socket.close())
            loop.run_until_complete(session.close())
    finally:
        loop.close()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(profile, ignore_errors=True)


def open_page(command: str, url: str) -> Seen:
    """What becomes of ``url`` in a new browser that has drawn an empty page before."""
    with browsing(command) as tab:
        tab.open("about:blank")
        return tab.open(url)


def _port(path: Path, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with suppress(FileNotFoundError, ValueError, IndexError):
            return int(path.read_text().splitlines()[0])
        time.sleep(0.05)
    raise RuntimeError(f"the browser {process.args} did not start")


async def _connect(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        pages = [page for page in await answer.json() if page["type"] == "page"]
    return session, await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
