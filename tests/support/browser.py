"""A real browser looks at a page that stands alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import pytest

CHROMIUM: Final = Path("/usr/bin/chromium")
FLAGS: Final = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
WIDTH: Final = 380


@dataclass(slots=True)
class Shown:
    """What a phone showed."""

    fits: bool = False  # nothing to scroll sideways
    pictures: int = 0
    dead_links: list[str] = field(default_factory=list)  # inside the page, to where nothing is
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def assert_sound(self) -> None:
        assert self.fits
        assert self.dead_links == []
        assert all(url.startswith(("file:", "data:")) for url in self.asked)
        assert self.complaints == []


def show_on_a_phone(page: str, folder: Path, scheme: Literal["light", "dark"] = "light") -> Shown:
    """Skips where there is no browser, but not in CI."""
    if not CHROMIUM.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"there is no {CHROMIUM}")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - slow to import, and needed here alone

    file, shown = folder / "page.html", Shown()
    file.write_text(page, encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        tab = browser.new_page(viewport={"width": WIDTH, "height": 800}, color_scheme=scheme)
        tab.on("request", lambda request: shown.asked.append(request.url))
        tab.on("console", lambda message: shown.complaints.append(message.text))
        tab.goto(file.as_uri())
        shown.fits = tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shown.pictures = tab.locator("[role=img]:visible").count()
        shown.dead_links = tab.evaluate(
            "[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))"
            ".filter(to => !to.startsWith('#') || !document.getElementById(to.slice(1)))"
        )
        browser.close()
    return shown
