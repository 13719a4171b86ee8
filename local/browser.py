"""A person at the UI, played by Chromium: starts a run by its form, follows it to its end, opens what it left.

`make screenshots` runs it against the services and deployments of `make demo`; it needs Chromium (`apt-get install chromium`)
and leaves the pictures in `docs/images`. Playwright is in a virtual environment of its own: the project does without it.
"""

import os
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
DEPLOYMENT = "parametrized ny-taxi ETL"
COLOR, YEAR, MONTHS = "green", 2022, (4, 5, 6)
MINUTES = 60_000  # milliseconds
# No request but the page's own leaves the machine.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def fill_in(page: Page, ui: str) -> None:
    """Open the deployment's form, see that it offers what there is, and fill it in."""
    page.goto(f"{ui}/deployments")
    page.get_by_text(DEPLOYMENT, exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    form = page.locator("form")
    for chosen, offered in (("yellow", ["yellow", "green", "fhv", "fhvhv"]), ("official", ["official", "mirror"])):
        form.locator("button", has_text=chosen).first.click()
        expect(page.get_by_role("option")).to_have_text(offered)
        page.get_by_role("option", name=COLOR if COLOR in offered else chosen, exact=True).click()
    numbers = form.locator("input[type=number]")
    numbers.nth(0).fill(str(YEAR))
    for place, month in enumerate(MONTHS, start=1):
        numbers.nth(place).fill(str(month))
    expect(form).to_contain_text("Whose trips: yellow and green taxis")


def picture(page: Page, name: str) -> None:
    """Take a picture of the page as it is now."""
    page.wait_for_timeout(1500)  # for what moves
    page.screenshot(path=IMAGES / f"{name}.png")


def main() -> None:
    """Run the deployment by hand, and take a picture of each page."""
    ui = os.environ.get("PREFECT_UI_URL")
    if not ui:
        sys.exit("PREFECT_UI_URL is not set: make demo; source .local/env")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=FLAGS
        )
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        fill_in(page, ui)
        picture(page, "run-form")
        page.get_by_role("button", name="Submit", exact=True).click()
        view = page.locator(".toast-flow-run-create__button")
        expect(view.first).to_be_visible(timeout=MINUTES)
        for button in view.all():  # the page has it twice, and only one of them alive
            button.dispatch_event("click")
        page.wait_for_url("**/flow-run/**")
        expect(page.locator(".state-badge").first).to_have_text("Completed", timeout=5 * MINUTES)
        key = f"{COLOR}-tripdata-{YEAR}-{MONTHS[-1]:02d}-lake"
        page.goto(f"{ui}/artifacts/key/{key}")
        page.locator("a[href*='/artifacts/artifact/']").first.click(timeout=MINUTES)
        expect(page.get_by_alt_text("trips per day")).to_be_visible(timeout=MINUTES)
        picture(page, "report")
        browser.close()


if __name__ == "__main__":
    main()
