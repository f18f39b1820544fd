"""A headless Chromium for the tests of the page; skipped where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# Without a sandbox, as root in a container has none; and nothing that would call home.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)
_PHONE = 600

Open = Callable[[Path | str], Any]

# Texts that a reader does not see whole: beyond the window's edge, in a box that hides what is too wide, or in one that must be scrolled
# sideways and is no table, drawn or other. What lies wholly to the left is a closed drawer.
_CUT = """
const width = document.documentElement.clientWidth, found = [];
const wider = (box) => box.clientWidth > 1 && box.scrollWidth > box.clientWidth + 1;
const clips = (box, kinds) => kinds.includes(getComputedStyle(box).overflowX) && wider(box);
const outer = (element, kinds) => {
  for (let box = element; box && box !== document.body; box = box.parentElement) if (clips(box, kinds)) return box;
  return null;
};
const gone = (element) => {
  for (let box = element; box && box !== document.body; box = box.parentElement) if (box.getBoundingClientRect().right <= 0) return true;
  return false;
};
for (const element of document.querySelectorAll("body *:not(script, style, noscript, option)")) {
  if (![...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim())) continue;
  const range = document.createRange();
  range.selectNodeContents(element);
  const box = range.getBoundingClientRect(), style = getComputedStyle(element);
  if (!box.width || !box.height || style.visibility === "hidden" || style.clipPath.startsWith("inset(50%") || gone(element)) continue;
  const scrolled = outer(element, ["auto", "scroll"]), hidden = outer(element, ["hidden", "clip"]);
  const table = scrolled && (scrolled.querySelector("table") || scrolled.closest(".language-text, .equation, .rows"));
  if (table) continue;
  if (scrolled || hidden || box.left < -1 || box.right > width + 1) found.push(element.textContent.trim().slice(0, 300));
}
return found;
"""


def resized(browser: Any, width: int) -> Any:
    """The page in a window of that many pixels; a narrow one is a phone's."""
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < _PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.refresh()
    return browser


def cut_text(browser: Any) -> list[str]:
    """The texts on the page that are cut horizontally."""
    return [str(text) for text in browser.execute_script(_CUT)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A selenium driver. Scheme and size of the window are the same again for every page that ``open_page`` opens."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=Service(driver, env={**os.environ, "SE_OFFLINE": "true"}))
    yield running
    running.quit()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open a file or an address; at the end of the test the console must be empty."""

    def call(page: Path | str) -> Any:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
        browser.get(page if isinstance(page, str) else page.absolute().as_uri())
        return browser

    yield call
    assert browser.get_log("browser") == []
