"""The README's picture of the first screen: ``python tests/browser/screen.py`` makes it anew.

The app with all bundled models, opened at a link to a view and drawn, as a window of 1280 x 720 shows it. To be run
when weights or looks have changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "browser")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--view", default="pocket-lines", help="what follows the app's address in a shared link")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "figures" / "explore.png")
    options = parser.parse_args()

    from pages import drawn
    from playwright.sync_api import sync_playwright

    from app.__main__ import FIRST, exhibit
    from app.demo import create_pages, launch_options
    from heatkv.models import bundled_folders

    names = sorted(bundled_folders(), key=lambda name: (name != FIRST, name))
    demo = create_pages([exhibit(name, "cpu", "float32") for name in names], FIRST)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(FIRST))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(url + options.view)
        page.wait_for_function("window.heatkv && heatkv.table && heatkv.defaults", timeout=120_000)
        drawn(page)
        page.wait_for_function("document.querySelectorAll('#dial .strip img').length > 4", timeout=120_000)
        page.screenshot(path=options.out)
        browser.close()
    demo.close()
    print(options.out)


if __name__ == "__main__":
    main()
