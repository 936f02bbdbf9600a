"""The site in a headless browser, from the file system: ``make test-site``, after ``make site``.

Every page once, and those that people read first at three widths, light and dark: no console error, no request to the network, every
picture there and with a text alternative, no page wider than its window, text that stands out from its background.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab import FLAGS, ROOT, needed

SITE = ROOT / "build" / "site"
WIDTHS = (390, 838, 1440)
SCHEMES = ("light", "dark")
FIRST = ("index.html", "docs/", "figures/README.html", "figures/full/claims.html", "figures/full/notebooks/")
CHECKS = """() => {
  const found = [];
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  if (wide > 1) found.push(`wider than the window by ${wide} pixels`);
  for (const image of document.images) {
    if (!image.complete || image.naturalWidth === 0) found.push(`picture missing: ${image.getAttribute("src").slice(0, 80)}`);
    if (!image.alt && !image.closest("[aria-hidden=true]")) found.push(`no alternative text: ${image.getAttribute("src").slice(0, 80)}`);
  }
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a] = numbers(getComputedStyle(at).backgroundColor);
      if (a === undefined || a > 0.99) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const low = new Set();
  for (const element of document.querySelectorAll("article *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const style = getComputedStyle(element);
    if (!own || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (element.closest(".headerlink, mjx-container, .MathJax, svg")) continue;
    const [a, b] = [numbers(style.color).slice(0, 3), behind(element)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) low.add(`${element.tagName}.${element.className} contrast ${ratio.toFixed(1)}`);
  }
  return found.concat([...low].slice(0, 5));
}"""


def main() -> int:
    """Look at every page; returns how many have something wrong, at most 100."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder for a picture of each page that is read first")
    given = parser.parse_args()
    browser_path, sync_playwright = needed("make test-site")
    pages = sorted(path for path in SITE.rglob("*.html") if "_static" not in path.parts)
    if not pages:
        print(f"{SITE} has no pages; make site makes them", file=sys.stderr)
        return 2
    bad = 0
    with sync_playwright() as entry:
        browser = entry.chromium.launch(executable_path=browser_path, args=[*FLAGS, "--allow-file-access-from-files"])
        for path in pages:
            name = path.relative_to(SITE).as_posix()
            first = name.startswith(FIRST)
            looks = [(w, s) for w in WIDTHS for s in SCHEMES] if first else [(WIDTHS[1], SCHEMES[0])]
            for width, scheme in looks:
                if found := look(browser, path, width, scheme, given.pictures if first else None):
                    bad += 1
                    print(f"{name} ({width} pixels, {scheme}): " + "; ".join(found), flush=True)
        browser.close()
    print(f"{len(pages)} pages looked at, {bad} looks with something wrong")
    return min(bad, 100)


def look(browser: object, path: Path, width: int, scheme: str, pictures: Path | None) -> list[str]:
    """What is wrong with one page at one width in one scheme."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, found = context.new_page(), []
    page.on(
        "console", lambda message: found.append(f"console: {message.text[:120]}") if message.type == "error" else None
    )
    page.on("pageerror", lambda error: found.append(f"script: {str(error)[:120]}"))
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(("file:", "data:", "blob:")) else found.append(f"asks {request.url[:80]}")
        ),
    )
    page.goto(path.as_uri(), wait_until="load")
    page.wait_for_timeout(150)
    found += page.evaluate(CHECKS)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=pictures / f"{path.stem}-{width}-{scheme}.png")
    context.close()
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    sys.exit(main())
