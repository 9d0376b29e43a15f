"""The page in a real browser: desktop and phone.

Where no Chromium is installed, the page's structure is still checked (`test_build`), and here
that nothing in it can be wider than a phone unless it scrolls by itself.
"""

import json
import re
import shutil
import subprocess

import pytest

from tests.reports.test_document import Page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)

PROBE = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll, pre")
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName);
  const images = [...document.images].map(i => i.complete && i.naturalWidth > 0);
  document.title = "PROBE" + JSON.stringify({inner: innerWidth, wide, images,
    scroll: document.documentElement.scrollWidth,
    font: parseFloat(getComputedStyle(document.querySelector("main p:not([class])")).fontSize)});
});</script>"""


def browse(tmp_path, *arguments):
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def probe(html, tmp_path, width):
    """What the page's own script sees in a window of that width."""
    copy = tmp_path / "copy.html"
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert without_policy != html
    copy.write_text(without_policy.replace("</head>", PROBE + "</head>"), encoding="utf-8")
    dom = browse(tmp_path, f"--window-size={width},900", "--dump-dom", copy.as_uri())
    found = re.search(r"<title>PROBE(.*?)</title>", dom)
    assert found, dom[:500]
    return json.loads(found.group(1))


def check_structure(html):
    """Without a browser: what could be too wide scrolls by itself, images shrink."""
    page = Page(html)
    assert page.tags.count("table") == html.count('<div class="scroll" tabindex="0"><table')
    assert "img { display: block; width: 100%; max-width: 100%; height: auto; }" in html
    assert "width=device-width" in html


@pytest.mark.parametrize(("variant", "width"), [("full", 1280), ("full", 390), ("hostile", 390)])
def test_the_page_fits_its_window_and_shows_its_figures(built, tmp_path, variant, width):
    html = built(variant).html
    check_structure(html)
    if BROWSER is None:
        return
    seen = probe(html, tmp_path, width)
    assert seen["inner"] <= max(width, 500)
    assert seen["scroll"] <= seen["inner"]
    assert seen["wide"] == []
    assert len(seen["images"]) == html.count("<figure") > 5
    assert all(seen["images"])
    assert seen["font"] >= 16
