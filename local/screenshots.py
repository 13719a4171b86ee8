"""Drive the UI with Chromium as a user does: start a run from its form, wait until it ends, and open its report.

`make screenshots` runs this against the services and deployments of `make demo`, and writes the pictures to `docs/images`. It
needs Chromium (`apt-get install chromium`). Playwright is in a separate virtual environment, because only this file needs it.
"""

import os
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
DEPLOYMENT = "parametrized ny-taxi ETL"
COLOR, YEAR, MONTHS = "green", 2022, (4, 5, 6)
# Each choice's default and everything that the form must offer. This environment lacks the product; a test compares the two.
CHOICES = {"yellow": ["yellow", "green", "fhv", "fhvhv"], "official": ["official", "mirror"]}
MINUTES = 60_000  # milliseconds
# With these flags, Chromium itself sends no requests over the network.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def fill_in(page: Page, ui: str) -> None:
    """Open the deployment's form, check the choices that it offers, and fill it in."""
    page.goto(f"{ui}/deployments")
    page.get_by_text(DEPLOYMENT, exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    form = page.locator("form")
    for chosen, offered in CHOICES.items():
        form.locator("button", has_text=chosen).first.click()
        expect(page.get_by_role("option")).to_have_text(offered)
        page.get_by_role("option", name=COLOR if COLOR in offered else chosen, exact=True).click()
    numbers = form.locator("input[type=number]")
    numbers.nth(0).fill(str(YEAR))
    for place, month in enumerate(MONTHS, start=1):
        numbers.nth(place).fill(str(month))
    expect(form).to_contain_text("Whose trips: yellow and green taxis")


def screenshot(page: Page, name: str) -> None:
    """Take a picture of the page."""
    page.wait_for_timeout(1500)  # animations must end first
    page.screenshot(path=IMAGES / f"{name}.png")


def main() -> None:
    """Run the deployment from the UI, and take a picture of the form and of the report."""
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
        screenshot(page, "run-form")
        page.get_by_role("button", name="Submit", exact=True).click()
        view = page.locator(".toast-flow-run-create__button")
        expect(view.first).to_be_visible(timeout=MINUTES)
        for button in view.all():  # the page has two copies of the button, and only one works
            button.dispatch_event("click")
        page.wait_for_url("**/flow-run/**")
        expect(page.locator(".state-badge").first).to_have_text("Completed", timeout=5 * MINUTES)
        key = f"{COLOR}-tripdata-{YEAR}-{MONTHS[-1]:02d}-lake"
        page.goto(f"{ui}/artifacts/key/{key}")
        page.locator("a[href*='/artifacts/artifact/']").first.click(timeout=MINUTES)
        expect(page.get_by_alt_text("trips per day")).to_be_visible(timeout=MINUTES)
        screenshot(page, "report")
        browser.close()


if __name__ == "__main__":
    main()
