"""A headless Chromium for tests of pages: opens an address at a width, runs script in it, takes its picture."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """Speaks the DevTools protocol with one browser."""

    def __init__(self, port: int):
        self.address = f"http://127.0.0.1:{port}"

    def evaluate(
        self,
        url: str,
        *scripts: str,
        width: int = 1280,
        height: int = 1000,
        dark: bool = False,
        picture: Path | None = None,
    ) -> list[Any]:
        """Open a page, wait until its body has `data-ready`, and return what each script evaluates to (promises awaited).

        picture: a PNG of the whole page. AssertionError if the page threw or broke its policy.
        """
        return asyncio.run(self._evaluate(url, scripts, width, height, dark, picture))

    async def _evaluate(
        self, url: str, scripts: Any, width: int, height: int, dark: bool, picture: Path | None
    ) -> list[Any]:
        import aiohttp

        async with aiohttp.ClientSession() as http:
            async with http.put(f"{self.address}/json/new?about:blank") as answer:
                where = (await answer.json())["webSocketDebuggerUrl"]
            async with http.ws_connect(where, max_msg_size=0) as ws:
                number, messages = 0, []

                async def call(method: str, **params: Any) -> dict[str, Any]:
                    nonlocal number
                    number += 1
                    await ws.send_json({"id": number, "method": method, "params": params})
                    while True:
                        got = await asyncio.wait_for(ws.receive_json(), 60)
                        if got.get("id") == number:
                            assert "error" not in got, got
                            return got["result"]
                        if got.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                            messages.append(got["params"])

                async def value(script: str) -> Any:
                    got = await call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
                    assert "exceptionDetails" not in got, got["exceptionDetails"]
                    return got["result"].get("value")

                for domain in ("Page", "Runtime", "Log"):
                    await call(f"{domain}.enable")
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
                await call("Emulation.setDeviceMetricsOverride", **size)
                scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
                await call("Emulation.setEmulatedMedia", features=scheme)
                await call("Page.navigate", url=url)
                end = time.monotonic() + 60
                while not await value("document.body && document.body.dataset.ready"):
                    assert time.monotonic() < end, f"{url} was not ready: {messages}"
                    await asyncio.sleep(0.05)
                found = [await value(s) for s in scripts]
                if picture is not None:
                    shot = await call("Page.captureScreenshot", captureBeyondViewport=True, clip=await _whole(call))
                    picture.write_bytes(base64.b64decode(shot["data"]))
                await call("Page.close")
                entries = [t.get("entry", {"level": "error"}) for t in messages]
                errors = [
                    e for e in entries if e["level"] == "error" and e.get("source") != "network"
                ]  # a 404 is no bug
                assert not errors, messages
                return found


async def _whole(call: Any) -> dict[str, Any]:
    size = (await call("Page.getLayoutMetrics"))["cssContentSize"]
    return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a fresh profile; it ends with the block."""
    assert CHROMIUM, "no chromium"
    home = tempfile.mkdtemp(prefix="browser-")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0"]
    command = [CHROMIUM, *options, f"--user-data-dir={home}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        port, end = Path(home) / "DevToolsActivePort", time.monotonic() + 60
        while not (port.is_file() and port.read_text().strip()):
            assert process.poll() is None and time.monotonic() < end, "the browser did not start"
            time.sleep(0.05)
        yield Browser(int(port.read_text().split()[0]))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(home, ignore_errors=True)
