"""A picture of the study's page, for the README.

python experiments/scaling/screenshot.py [WORKLOAD]    needs Chromium; writes report.png beside this file
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent
REPORT = HERE.parents[1] / "runs" / "scaling" / "report.html"


def main(workload="generation"):
    """Show the plots of a workload, as a reader sees them."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(REPORT.as_uri())
        page.add_style_tag(content=f"section:not(#{workload}), section .scroll, section ul, nav {{ display: none }}")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")  # draws every plot
        page.wait_for_selector(f"#{workload} .scatterlayer .trace")
        page.wait_for_timeout(500)
        page.screenshot(path=HERE / "report.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
