"""A page in headless Chromium, driven by the DevTools protocol over its websocket."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60
NOISE = ("data:", "file:")


def chromium() -> str | None:
    """The path of a Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """What a loaded page asked for, said and shows."""

    def __init__(self, socket: WebSocketClientConnection):
        self._socket, self._last = socket, 0
        self.said: list[str] = []
        """lines of the console and uncaught errors"""
        self.requested: list[str] = []
        """addresses that are neither this file nor data"""

    async def call(self, method: str, **params: Any) -> Any:
        self._last += 1
        await self._socket.write_message(json.dumps({"id": self._last, "method": method, "params": params}))
        return await self.until(lambda message: message.get("id") == self._last)

    async def until(self, wanted: Callable[[dict], bool]) -> Any:
        while True:
            message = json.loads(await asyncio.wait_for(self._socket.read_message(), SECONDS))
            self._note(message.get("method"), message.get("params", {}))
            if "error" in message:
                raise RuntimeError(message["error"])
            if wanted(message):
                return message.get("result", message.get("params"))

    def _note(self, method: str | None, params: dict) -> None:
        if method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.said.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(NOISE):
            self.requested.append(params["request"]["url"])

    async def value(self, script: str) -> Any:
        """What an expression, or a promise of it, is worth in the page."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    async def picture(self, beyond: bool = False) -> bytes:
        import base64

        shown = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=beyond)
        return base64.b64decode(shown["data"])

    async def pdf(self) -> bytes:
        import base64

        return base64.b64decode((await self.call("Page.printToPDF", preferCSSPageSize=True))["data"])


def visit(program: str, file: Path, profile: Path, look: Callable[[Page], Awaitable[None]]) -> None:
    """Opens a file and gives its page to `look`. profile: an empty folder for Chromium."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1366,768"]
    flags += [
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        "--no-first-run",
        "--disable-background-networking",
    ]
    command = [program, *flags, "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            address = next(found[1] for line in lines if (found := re.search(r"listening on (ws://\S+)", line)))
            asyncio.run(_visit(address, file, look))
        finally:
            process.kill()


async def _visit(address: str, file: Path, look: Callable[[Page], Awaitable[None]]) -> None:
    browser = Page(await websocket_connect(address))
    target = (await browser.call("Target.createTarget", url="about:blank"))["targetId"]
    own = f"{address.partition('/devtools/')[0]}/devtools/page/{target}"
    page = Page(await websocket_connect(own, max_message_size=1 << 30))
    for domain in ("Page", "Runtime", "Log", "Network"):
        await page.call(f"{domain}.enable")
    await page.call("Page.navigate", url=file.resolve().as_uri())
    await page.until(lambda message: message.get("method") == "Page.loadEventFired")
    await look(page)
