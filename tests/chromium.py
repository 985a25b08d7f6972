"""A headless Chromium, driven by the DevTools protocol over a pipe: no driver, no server, no further package."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60  # that an answer may take on a busy machine


def find() -> str | None:
    """The browser that is installed, if one is."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """The one page of a browser.

    Attributes:
        requests: addresses that were asked for since the page was opened.
        faults: errors and warnings of its console, exceptions, and what its policy refused.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._rest, self._number = read, write, b"", 0
        self._session: str | None = None
        self._arrived: dict[int, dict[str, Any]] = {}
        self._loaded = False
        self.requests: list[str] = []
        self.faults: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Ask the browser and wait for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._wait(lambda: self._arrived.pop(message["id"], None), method)

    def _wait(self, found: Any, what: str) -> Any:
        until = time.monotonic() + SECONDS
        while (answer := found()) is None:
            if not select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium said nothing to {what} in {SECONDS} s")
            self._rest += os.read(self._read, 1 << 20)
            *whole, self._rest = self._rest.split(b"\0")
            for one in map(json.loads, whole):
                self._take(one)
        return answer

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            if "error" in message:
                raise RuntimeError(message["error"]["message"])
            self._arrived[message["id"]] = message["result"]
            return
        about = message.get("params", {})
        match message["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
            case "Runtime.exceptionThrown":
                details = about["exceptionDetails"]
                self.faults.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning", "assert"):
                self.faults.append(str(about["args"]))
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.faults.append(about["entry"]["text"])
            case "Page.loadEventFired":
                self._loaded = True

    def open(self, path: Path, state: str = "", width: int = 1366, height: int = 768) -> None:
        """Open a file, in a state that its address holds, in a window of this size, and wait until it has drawn itself."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        for url in ("about:blank", path.resolve().as_uri() + state):
            self.requests.clear()
            self.faults.clear()
            self._loaded = False
            self.call("Page.navigate", url=url)
            self._wait(lambda: self._loaded or None, "Page.navigate")
        self.run(
            "new Promise((done) => { const look = () => document.getElementById('loading')?.textContent.startsWith('Unpacking')"
            " ? setTimeout(look, 5) : done(); look(); })"
        )

    def run(self, script: str) -> Any:
        """Value of an expression in the page, waited for if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(
                answer["exceptionDetails"].get("exception", {}).get("description", "the script failed")
            )
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key and release it."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Save what is seen as PNG, or all of the page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def printed(self, path: Path) -> None:
        """Save the page as it is printed, as PDF."""
        path.write_bytes(
            base64.b64decode(
                self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]
            )
        )


@contextlib.contextmanager
def chromium(downloads: Path | None = None) -> Iterator[Page]:
    """A browser with one page and a profile of its own; it ends with the block."""
    found = find()
    assert found is not None, "install Debian's chromium"
    with tempfile.TemporaryDirectory(prefix="chromium", ignore_cleanup_errors=True) as profile:
        to_browser, ours = os.pipe()
        back, from_browser = os.pipe()
        # It reads descriptor 3 and writes descriptor 4, whatever these are here.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser, from_browser)]
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
            "--disable-background-networking",
            "--disable-component-update",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]

        def connect() -> None:
            for fd, number in zip(high, (3, 4), strict=True):
                os.dup2(fd, number)

        process = subprocess.Popen(
            [found, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            pass_fds=(3, 4),
        )
        for fd in (to_browser, from_browser, *high):
            os.close(fd)
        try:
            page = Page(back, ours)
            if downloads is not None:
                page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
            yield page
        finally:
            os.close(ours)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(back)
