"""The explorer in a headless browser, from the file system: part of ``make test-site``, or alone after ``make explorer``.

What the page computes is compared with the package: losses, derivatives and exact changes of weights drawn from every tensor, and masks.
A drag of the sparsity is timed on a processor that is slowed down. The page is used with the keyboard, and without scripts.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lab import FLAGS, ROOT, needed
from torch.nn import functional as F

import snipnb

WIDTHS = (360, 768, 1280)
SCHEMES = ("light", "dark")
WEIGHTS = 100  # compared, for each network
AGREE = 1e-5  # of the largest
SPARSITIES = (0.0, 0.05, 0.29, 0.5, 0.9, 0.95, 0.96, 0.99, 0.999)
SLOWER = 4
ANSWERED = 100  # milliseconds
MOVES = 60  # of a drag
ATTEMPTS = 5  # other programs can only slow a drag down, so the fastest drag counts
READY = "() => window.explorer.ready.then(() => window.explorer.finished())"
# The delay of every event until its picture is on the screen: until a task that was asked for with that picture has its turn.
TIMED = """() => {
  window.delays = [];
  document.getElementById("sparsity").addEventListener("input", (event) => {
    requestAnimationFrame(() => {
      const channel = new MessageChannel();
      channel.port1.onmessage = () => window.delays.push(performance.now() - event.timeStamp);
      channel.port2.postMessage(null);
    });
  });
}"""


def main() -> int:
    """Check the page; returns how many things are wrong, at most 100."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?", default=ROOT / "build" / "site" / "explorer.html")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the page at three widths, light and dark")
    given = parser.parse_args()
    browser_path, sync_playwright = needed("make test-site")
    if not given.page.is_file():
        print(f"{given.page} is missing; make explorer makes a page", file=sys.stderr)
        return 2
    wrong = []
    with sync_playwright() as entry:
        browser = entry.chromium.launch(executable_path=browser_path, args=FLAGS)
        page, found = opened(browser, given.page)
        wrong += [*compare(page, given.page), *masks(page), *keyboard(page), *pointer(page), *found]
        page.context.close()
        wrong += [*drag(browser, given.page), *without_scripts(browser, given.page, given.pictures)]
        for width in WIDTHS:
            for scheme in SCHEMES:
                wrong += looks(browser, given.page, width, scheme, given.pictures)
        browser.close()
    for line in wrong:
        print(line, flush=True)
    print(f"{given.page.name}: {len(wrong)} things wrong")
    return min(len(wrong), 100)


def opened(browser, path: Path, **options) -> tuple[object, list[str]]:
    """The page after its first computation, and a list that errors and requests are added to."""
    page, found = browser.new_context(**options).new_page(), []
    page.on(
        "console",
        lambda message: found.append(f"console: {message.text}") if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: found.append(f"script: {error}"))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else found.append(f"asks {request.url}"),
    )
    page.goto(path.resolve().as_uri())
    if options.get("java_script_enabled", True):
        page.evaluate(READY)
    return page, found


def shipped(path: Path) -> dict:
    """The data inside the page."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"))[1]
    )


def floats(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy())


def split(flat: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    parts = flat.split([p.numel() for p in model.parameters()])
    return {name: part.view(p.shape) for (name, p), part in zip(model.named_parameters(), parts, strict=True)}


def compare(page, path: Path) -> Iterator[str]:
    """Losses, derivatives and exact changes of the page and of the package."""
    data = shipped(path)
    images, labels = snipnb.load_mnist("test", sample=True)
    images, labels = images[: len(data["labels"])].double(), labels[: len(data["labels"])]
    generator = torch.Generator().manual_seed(1)
    for key, state in data["states"].items():
        model = snipnb.lenet5().double()
        model.load_state_dict({name: w.double() for name, w in split(floats(state["weights"]), model).items()})
        with torch.no_grad():
            loss = float(F.cross_entropy(model(images), labels))
        if not abs(page.evaluate("key => window.explorer.loss(key)", key) - loss) <= AGREE * loss:
            yield f"{key}: the loss differs"
        snip, exact = snipnb.snip(model, images, labels), snipnb.exact_salience(model, images, labels)
        second = snipnb.taylor_salience(model, images, labels, order=2)
        worst = dict.fromkeys(("exact change", "first order", "second order"), 0.0)
        for name, p in model.named_parameters():
            scales = {"exact change": exact[name], "first order": snip[name], "second order": second[name]}
            for index in torch.randint(p.numel(), (WEIGHTS // len(exact),), generator=generator).tolist():
                at = [key, name, index]
                change = page.evaluate("([key, name, index]) => window.explorer.change(key, name, index)", at)
                d = page.evaluate("([key, name, index]) => window.explorer.derivatives(key, name, index)", at)
                own = {
                    "exact change": change,
                    "first order": d["slope"],
                    "second order": d["curvature"] / 2 - d["slope"],
                }
                for what, values in scales.items():
                    difference = abs(own[what] - float(values.flatten()[index])) / float(values.abs().max())
                    worst[what] = max(worst[what], difference)
                    if not difference <= AGREE:
                        yield f"{key}, {name} {index}: the {what} differs by {difference:.1e} of the largest"
        print(f"{key}: largest differences " + ", ".join(f"{what} {d:.0e}" for what, d in worst.items()), flush=True)


def masks(page) -> Iterator[str]:
    """What the page keeps and what :func:`snipnb.keep_mask` keeps."""
    data, model = json.loads(page.evaluate("document.getElementById('data').textContent")), snipnb.lenet5()
    for key, state in data["states"].items():
        for criterion in ("snip", "exact"):
            salience = split(floats(state[criterion]), model)
            for sparsity in SPARSITIES:
                kept = page.evaluate("([k, c, s]) => window.explorer.kept(k, c, s)", [key, criterion, sparsity])
                number = len(kept) - snipnb.num_removed(len(kept), sparsity)
                mask = keep(salience, number)
                if not torch.equal(torch.tensor(kept, dtype=torch.bool), mask):
                    yield f"{key}, {criterion}, sparsity {sparsity}: another mask"


def keep(salience: dict[str, torch.Tensor], number: int) -> torch.Tensor:
    """The mask of so many parameters, in one vector, without a word about layers that keep nothing."""
    from snipnb.pruning.masks import keep_number

    return torch.cat([m.flatten() for m in keep_number(salience, number).values()])


def keyboard(page) -> Iterator[str]:
    """Pick weights and move both sliders with keys alone; what is said must change each time."""
    said = set()
    for label, keys in [
        ("#layer", ["ArrowDown"]),
        ("#coordinates input", ["ArrowUp", "Tab"]),
        ("#pick-exact", ["Enter"]),
        ("#factor", ["ArrowLeft"]),
        ("#factor", ["Home"]),
    ]:
        page.locator(label).first.focus()
        for key in keys:
            page.keyboard.press(key)
        page.evaluate("window.explorer.finished()")
        text = page.locator("#path-text").inner_text()
        if text in said:
            yield f"{label}: {keys} changes nothing that is said"
        said.add(text)
    for keys in (["End"], ["Home"], ["ArrowRight"]):
        page.locator("#sparsity").focus()
        for key in keys:
            page.keyboard.press(key)
        page.wait_for_timeout(700)
        text = page.locator("#mask-text").inner_text()
        if text in said:
            yield f"sparsity: {keys} changes nothing that is said"
        said.add(text)
    page.get_by_role("button", name="0.95", exact=True).press("Enter")
    page.wait_for_timeout(200)
    if page.locator("#counts .now").count() < 10:
        yield "the published counts at sparsity 0.95 do not stand out"
    unnamed = page.evaluate("""() => [...document.querySelectorAll("input, select, button, canvas, svg[role=img]")].filter((e) =>
      !(e.labels && e.labels.length) && !e.textContent.trim() && !e.getAttribute("aria-label")).map((e) => e.outerHTML.slice(0, 80))""")
    yield from (f"without a name: {text}" for text in unnamed)


def pointer(page) -> Iterator[str]:
    """Pick the first weight of a layer by a click on its drawing, in the picker and among all layers."""
    for canvas, said in [
        ("#layers canvas >> nth=0", "Conv 1, kernel 1, row 1, column 1:"),
        ("#map", "Conv 1, kernel 2, row 1, column 1:"),
    ]:
        drawing = page.locator(canvas)
        drawing.scroll_into_view_if_needed()
        cell = drawing.bounding_box()["width"] / 35  # six kernels of five columns, with gaps
        drawing.click(position={"x": cell * (6.5 if canvas == "#map" else 0.5), "y": cell / 2})
        page.evaluate("window.explorer.finished()")
        if not page.locator("#path-text").inner_text().startswith(said):
            yield f"a click on {canvas} did not pick the weight under it"


def drag(browser, path: Path) -> Iterator[str]:
    """Drag the sparsity with the mouse on a slow processor, also while a loss path is being computed."""
    page, found = opened(browser, path, viewport={"width": 1280, "height": 900})
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    page.evaluate(TIMED)
    slider = page.locator("#sparsity")
    slider.scroll_into_view_if_needed()
    for busy in (False, True):
        when = "while a path is computed" if busy else "at rest"
        for _ in range(ATTEMPTS):
            page.evaluate("window.delays.length = 0")
            if busy:
                page.evaluate("document.getElementById('pick-random').click()")
            delays = dragged(page, slider)
            usual, late = np.median(delays), delays.max()
            print(
                f"{SLOWER} times slower, {when}: of {len(delays)} events half are answered within {usual:.0f} ms, all within {late:.0f} ms",
                flush=True,
            )
            if len(delays) >= MOVES / 2 and late <= ANSWERED:
                break
        else:
            yield f"the drag {when} was answered after {late:.0f} ms ({len(delays)} events), in each of {ATTEMPTS} attempts"
    yield from found
    page.context.close()


def dragged(page, slider) -> np.ndarray:
    """Delays of the events of one drag from the left to the right, in milliseconds."""
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.1, middle)
    page.mouse.down()
    for step in range(MOVES):
        page.mouse.move(box["x"] + box["width"] * (0.1 + 0.85 * step / MOVES), middle)
        page.wait_for_timeout(16)
    page.mouse.up()
    page.wait_for_timeout(300)
    return np.array(page.evaluate("window.delays"))


def without_scripts(browser, path: Path, pictures: Path | None) -> Iterator[str]:
    """What is missing is said."""
    page, found = opened(browser, path, java_script_enabled=False, viewport={"width": 768, "height": 900})
    if not page.locator("noscript p").is_visible() or page.locator("#explorer").is_visible():
        yield "without scripts nothing is said, or there are controls"
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=pictures / "explorer-noscript.png", full_page=True)
    yield from found
    page.context.close()


def looks(browser, path: Path, width: int, scheme: str, pictures: Path | None) -> Iterator[str]:
    """No wider than the window, readable, without errors; a picture of all of it."""
    from pages import CHECKS

    page, found = opened(
        browser,
        path,
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        device_scale_factor=2 if width < 500 else 1,
    )
    found += page.evaluate(CHECKS)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=pictures / f"explorer-{width}-{scheme}.png", full_page=True)
    page.context.close()
    yield from (f"{width} pixels, {scheme}: {text}" for text in found)


if __name__ == "__main__":
    sys.exit(main())
