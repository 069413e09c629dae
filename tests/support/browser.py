"""A headless Chromium for pages of ours, driven without anything being downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.programs import program

__all__ = ["PageBrowser"]


class PageBrowser:
    """A browser that keeps what it was asked for, and what its console says.

    Args:
        profile: A folder of its own.
        width: Of the window, CSS pixels.
        dark: Whether the person prefers dark pages.
    """

    def __init__(self, profile: Path, width: int = 1400, *, dark: bool = False) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = program("chromium")
        for flag in (
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--no-proxy-server", "--hide-scrollbars", "--window-size=1400,1000",
            f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(program("chromedriver")))
        self.look(width=width, dark=dark)

    def look(self, *, width: int, dark: bool = False, height: int = 1000) -> None:
        """Be a window of this width, for a person who likes light pages, or dark ones."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def open(self, url: str) -> None:
        self.driver.get(url)

    def find(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        """What all that *selector* finds says, at one moment."""
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText).join(' ')",
            selector,
        )

    def click(self, selector: str) -> None:
        """Click as a person does, but on an element that news may just be changing."""
        self.run("document.querySelector(arguments[0]).click()", selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def photograph(self, path: Path) -> None:
        """Save the whole page as a picture."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))

    def complaints(self) -> list[str]:
        """What the console has said since the last look."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requested(self) -> set[str]:
        """The addresses that were asked for since the last look."""
        events = [json.loads(entry["message"]) for entry in self.driver.get_log("performance")]
        return {
            event["message"]["params"]["request"]["url"]
            for event in events
            if event["message"]["method"] == "Network.requestWillBeSent"
        }

    def findings_of_axe(self) -> list[str]:
        """What axe-core finds that is serious or worse, with where."""
        from importlib.resources import files

        source = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
        # By the debugger: the page's own policy lets no script in.
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": source})
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run().then(r => done(r.violations))"
        )
        return [
            f"{each['id']}: {node['html'][:200]} {node['failureSummary']}"
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    def close(self) -> None:
        self.driver.quit()
