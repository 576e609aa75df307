"""Curves of several runs in one picture, drawn by the page of a report, in its light colours. Needs Chromium."""

import shutil

from playwright.sync_api import sync_playwright

DRAW = r"""figures => {
  loadPlotly();
  const ink = getComputedStyle(document.documentElement);
  const drawn = JSON.parse(
    JSON.stringify(figures).replace(/var\((--[\w-]+)\)/g, (_, name) => ink.getPropertyValue(name).trim()));
  document.body.innerHTML = '<div class="tiles"></div>';
  for (const [name, { data, layout }] of Object.entries(drawn)) {
    const tile = document.createElement("figure");
    tile.className = "tile";
    tile.innerHTML = `<figcaption>${name}</figcaption><div style="height: ${layout.height}px"></div>`;
    document.querySelector(".tiles").append(tile);
    Plotly.newPlot(tile.lastChild, data, themed(layout), { staticPlot: true });
  }
}"""


def draw(report, figures, path):
    """Write a PNG of the figures, a tile each.

    Args:
        report: any run's report.html, whose style and script are used.
        figures: title -> figure of `mmpds.report.figures`.
        path: the PNG.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(report.resolve().as_uri())
        page.evaluate(DRAW, figures)
        page.wait_for_selector(".tile:last-child .scatterlayer .trace")
        page.locator(".tiles").screenshot(path=path)
        browser.close()
