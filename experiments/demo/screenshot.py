"""A picture of a run's report, for the README.

python experiments/demo/screenshot.py RUN_DIR    needs Chromium; writes report.png beside this file
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent
SHOWN = "#curves, #threshold"


def main(run_dir):
    """Show the sections that say most, as a reader sees them."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(Path(run_dir, "report.html").resolve().as_uri())
        page.add_style_tag(content=f"section:not({SHOWN}) {{ display: none }}")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")  # draws every plot
        page.wait_for_selector("#curves .scatterlayer .trace")
        page.wait_for_timeout(500)
        page.screenshot(path=HERE / "report.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
