"""Makes the pictures of the page of the lanes from a real run: ``python docs/page_pictures.py``.

Runs ``python -m examples.tools --web`` and photographs the page in a headless Chromium, in four
states. Needs the extras ``demo`` and ``test``; takes about a minute.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.browser import PageBrowser

OUT = ROOT / "docs" / "_static"
#: Seconds in which what is shown must be there.
PATIENCE = 60.0


def main() -> None:
    """Write ``page-light.png``, ``page-dark.png``, ``page-lane.png`` and ``page-small.png``."""
    command = [sys.executable, "-u", "-m", "examples.tools", "--web"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = PageBrowser(Path(profile))
        try:
            browser.open(_address(run))
            _wait(browser, "return document.querySelector('tr.lane[data-lane=critic]') !== null")
            _wait(browser, "return /oldest/.test(document.body.innerText)")
            browser.look(width=1300, height=1000)
            browser.click('button.name[data-lane="critic"]')
            _wait(browser, "return /Running now/.test(document.body.innerText)")
            time.sleep(3)
            browser.look(width=1300, height=1280)
            browser.photograph(OUT / "page-lane.png")
            browser.click('button.name[data-lane="critic"]')
            _wait(browser, "return document.querySelector('#kills details') !== null")
            for name, width, height, dark in (
                ("light", 1300, 880, False),
                ("dark", 1300, 880, True),
                ("small", 380, 1100, False),
            ):
                browser.look(width=width, height=height, dark=dark)
                time.sleep(2.5)
                browser.photograph(OUT / f"page-{name}.png")
        finally:
            browser.close()
            run.send_signal(signal.SIGINT)
            run.communicate()


def _address(run: subprocess.Popen[str]) -> str:
    assert run.stdout is not None
    for line in run.stdout:
        found = re.search(r"http://127\.\S+", line)
        if found is not None:
            return found.group()
    raise SystemExit("the demo ended before it had a page")


def _wait(browser: PageBrowser, script: str) -> None:
    until = time.monotonic() + PATIENCE
    while not browser.run(script):
        if time.monotonic() > until:
            raise SystemExit(f"not within {PATIENCE:g} s: {script}")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
