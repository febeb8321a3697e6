"""A real browser, driven over Chromium's DevTools protocol: the mouse and keys of a visitor, and what he then sees.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_START_S, _ANSWER_S, _SEEN_S = 120.0, 60.0, 120.0


def find_browser() -> str:
    """The browser's program; skips the test where there is none."""
    browser = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser; install one of {', '.join(_NAMES)}")
    return browser


class Page:
    """A tab of a browser. Elements are named by CSS selectors; each method waits until its element is to be seen."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._ids = connection, itertools.count()

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)

    def press(self, selector: str) -> None:
        """A click of the mouse in the middle of the element."""
        middle = f"""(() => {{
            const found = document.querySelector({json.dumps(selector)});
            found?.scrollIntoView({{block: "center", behavior: "instant"}});
            const box = found?.getBoundingClientRect();
            return box?.width && !found.disabled ? [box.x + box.width / 2, box.y + box.height / 2] : null;
        }})()"""
        x, y = self._until(middle, f"{selector} can be pressed")
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Press the field and write into it, over what it holds."""
        self.press(selector)
        self._call("Input.dispatchKeyEvent", type="keyDown", commands=["selectAll"])
        self._call("Input.insertText", text=text)

    def texts(self, selector: str) -> list[str]:
        """What can be read in each element of this selector, at least one."""
        read = f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.innerText.trim())"
        found: list[str] = self._until(f"((all) => all.length ? all : null)({read})", f"{selector} is there")
        return found

    def see(self, selector: str, text: str) -> None:
        """Wait until an element of this selector shows the text."""
        shown = f"[...document.querySelectorAll({json.dumps(selector)})].some((node) => node.innerText.includes("
        self._until(f"{shown}{json.dumps(text)})) || null", f"{selector} shows {text!r}")

    def evaluate(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        done = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def _until(self, script: str, what: str) -> Any:
        """The value of the script as soon as it is not null."""
        deadline = time.monotonic() + _SEEN_S
        while (value := self.evaluate(script)) is None:
            assert time.monotonic() < deadline, f"it never came that {what}; on the page: {self._all_text()}"
            time.sleep(0.05)
        return value

    def _all_text(self) -> str:
        return str(self.evaluate("document.body?.innerText"))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self._connection.recv(_ANSWER_S))).get("id") != number:
            pass  # an event, of which none is asked for
        assert "error" not in message, f"{method}: {message['error']}"
        result: dict[str, Any] = message["result"]
        return result


@contextmanager
def browser_page(profile: Path, size: tuple[int, int] = (1280, 900)) -> Iterator[Page]:
    """A browser with an empty page, while the block runs.

    Args:
        profile: folder for its files, which it makes.
    """
    process = subprocess.Popen(
        [
            find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "--remote-debugging-port=0",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with connect(_page_address(profile, process), max_size=None, proxy=None) as connection:
            yield Page(connection)
    finally:
        process.terminate()
        process.wait(30)


def _page_address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Of the first tab's web socket; the browser writes its port into its profile when it listens."""
    file, deadline = profile / "DevToolsActivePort", time.monotonic() + _START_S
    while True:
        assert process.poll() is None, "the browser ended"
        assert time.monotonic() < deadline, "the browser did not start"
        if file.exists() and (lines := file.read_text().splitlines()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=_ANSWER_S) as response:
                tabs = [tab for tab in json.load(response) if tab["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
