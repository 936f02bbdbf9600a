"""Every notebook, opened and run in a real JupyterLab by a headless browser: ``make test-lab``.

It is no part of ``make test``: it needs a Chromium and the Python package playwright, which it does not install. Notebooks are copied
to a temporary folder and get the parameters of the smoke profile, as somebody would type them into the parameters cell.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
MINUTES = 10  # for one notebook


def needed(command: str = "make test-lab") -> tuple[str, object]:
    """Path of a browser and playwright's entry; what is missing is said, and nothing installed."""
    browser = os.environ.get("SNIPNB_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    missing = []
    if browser is None:
        missing.append(f"a browser: one of {', '.join(BROWSERS)} on the PATH, or its path in SNIPNB_BROWSER")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
        missing.append(f"the Python package playwright: {sys.executable} -m pip install playwright")
    if missing:
        print(f"{command} needs\n  " + "\n  ".join(missing), file=sys.stderr)
        sys.exit(2)
    return browser, sync_playwright


def with_parameters(source: Path, target: Path, parameters: dict[str, object]) -> None:
    """A copy of a notebook whose parameters cell has other values."""
    notebook = json.loads(source.read_text(encoding="utf-8"))
    cell = next(c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", []))
    lines = "".join(cell["source"]).splitlines()
    known = {line.split(" = ")[0]: line for line in lines}
    cell["source"] = "\n".join(
        f"{name} = {parameters.get(name, '')!r}" if name in parameters else line for name, line in known.items()
    )
    target.write_text(json.dumps(notebook), encoding="utf-8")


class Server:
    """A JupyterLab of our own, on a free port, in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.token = secrets.token_hex(16)
        self.log = (folder / "server.log").open("w")
        settings = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(
            '{"fetchNews": "false", "checkForUpdates": false}'
        )  # no question about news over the pictures
        environment = os.environ | {
            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
            "JUPYTER_CONFIG_DIR": str(folder / "config"),
            "JUPYTER_DATA_DIR": str(folder / "data"),
            "SNIPNB_RUNS": str(folder / "runs"),
            "SNIPNB_OUTPUT": str(folder / "output"),
        }
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={self.port}",
                   f"--IdentityProvider.token={self.token}", "--LabApp.expose_app_in_browser=True", f"--notebook-dir={folder / 'notebooks'}",
                   "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        for _ in range(120):
            try:
                urllib.request.urlopen(self.url("api/status"), timeout=2).close()
                return
            except OSError:
                time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"JupyterLab did not start:\n{Path(self.log.name).read_text()[-2000:]}")

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}?token={self.token}"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


STATE = """() => {
  const panel = window.jupyterapp.shell.currentWidget;
  if (!panel || !panel.content || !panel.content.model || !panel.sessionContext || !panel.sessionContext.isReady) return null;
  const kernel = panel.sessionContext.session && panel.sessionContext.session.kernel;
  const cells = Array.from({length: panel.content.model.cells.length}, (_, i) => panel.content.model.cells.get(i));
  const code = cells.filter(c => c.type === 'code');
  const outputs = code.flatMap(c => c.outputs.toJSON());
  return {
    status: kernel ? kernel.status : 'none',
    cells: code.length,
    run: code.filter(c => c.executionCount !== null).length,
    errors: outputs.filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue),
    warnings: outputs.filter(o => o.name === 'stderr').map(o => String(o.text).slice(0, 300)),
    pictures: outputs.filter(o => o.data && o.data['image/png']).length,
    last: outputs.length ? JSON.stringify(outputs[outputs.length - 1]).slice(0, 200) : '',
  };
}"""


def open_notebook(page, server: Server, name: str) -> None:
    page.goto(server.url(f"lab/tree/{name}") + "&reset")
    page.wait_for_function(STATE, timeout=120_000)


def run_all(page, *, until=None) -> dict:
    """Run All; returns the state at the end, or as soon as ``until`` says so."""
    page.evaluate("() => { window.jupyterapp.commands.execute('runmenu:run-all'); }")
    end, seen_progress = time.time() + 60 * MINUTES, False
    while time.time() < end:
        time.sleep(1)
        state = page.evaluate(STATE)
        seen_progress |= (
            page.locator(".jp-OutputArea-output progress, .jp-OutputArea-output [role=progressbar]").count() > 0
        )
        if state is None:
            continue
        if state["errors"] or (until and until()):
            break
        if state["run"] == state["cells"] and state["status"] == "idle":
            break
    else:
        raise RuntimeError(f"still running after {MINUTES} minutes: {state}")
    return state | {"progress": seen_progress}


def theme(page, name: str) -> None:
    page.evaluate(f"() => window.jupyterapp.commands.execute('apputils:change-theme', {{theme: '{name}'}})")
    time.sleep(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help="leading digits, or report; default all")
    parser.add_argument("--pictures", type=Path, help="folder for screenshots")
    given = parser.parse_args()
    browser, sync_playwright = needed()
    from snipnb.publish import profiles

    profile = profiles.load_profile("smoke")
    sources = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    chosen = [p for p in sources if not given.notebooks or p.stem.split("_")[0] in given.notebooks]
    failures = 0
    if given.pictures:
        given.pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="snipnb-lab-") as temporary:
        folder = Path(temporary)
        (folder / "notebooks").mkdir()
        for path in chosen:
            with_parameters(path, folder / "notebooks" / path.name, profile.parameters(path.stem) | {"profile": "lab"})
        server = Server(folder)
        try:
            with sync_playwright() as playwright:
                window = playwright.chromium.launch(executable_path=browser, args=FLAGS)
                if not given.notebooks or "report" in given.notebooks:
                    failures += check_report(window, folder / "report", given.pictures)
                page = window.new_page(viewport={"width": 1400, "height": 1000})
                for path in chosen:
                    start = time.time()
                    open_notebook(page, server, path.name)
                    if path.stem.startswith("03"):
                        failures += not restarted(page, folder / "runs")
                    state = run_all(page)
                    good = not state["errors"] and not state["warnings"] and state["run"] == state["cells"]
                    failures += not good
                    seen = "progress seen" if state["progress"] else "no progress seen"
                    said = f"{state['cells']} cells, {state['pictures']} figures, {seen}, {time.time() - start:.0f} s"
                    print(f"{path.stem}: {'ok' if good else 'FAILED'}, {said}", flush=True)
                    if not good:
                        print(f"  {state['errors'] or state['warnings'] or state}", flush=True)
                    if given.pictures:
                        for name in ("JupyterLab Light", "JupyterLab Dark"):
                            theme(page, name)
                            picture(page, given.pictures / f"{path.stem}-{name.split()[1].lower()}.png")
                        theme(page, "JupyterLab Light")
                    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
                    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        finally:
            server.stop()
    return 1 if failures else 0


PAGE = """() => {
  const rgba = text => { const n = (text.match(/[\\d.]+/g) || []).map(Number); return n.length < 4 ? [...n.slice(0, 3), 1] : n; };
  const light = c => { const f = c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                       return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
  const behind = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c.length === 4 && c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const faint = new Set();
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest('svg')) continue;
    const style = getComputedStyle(e), a = light(rgba(style.color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) faint.add(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
  }
  const pictures = [...document.images];
  return {
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    broken: pictures.filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(0, 80)),
    silent: pictures.filter(i => !i.alt).map(i => i.src.slice(0, 80)),
    untitled: document.title ? [] : ['no title'],
    faint: [...faint].slice(0, 8),
  };
}"""


def check_report(browser, folder: Path, pictures: Path | None) -> int:
    """Every page of the report on a screen and a phone, light and dark: what is broken, too wide or too faint; how many pages are."""
    from tools import site

    site.make(ROOT, folder)
    pages, bad = sorted(folder.rglob("*.html")), 0
    for path in pages:
        found = []
        for width, scheme in ((1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            errors: list[str] = []
            page.on(
                "console",
                lambda message, errors=errors: errors.append(message.text) if message.type == "error" else None,
            )
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.on("requestfailed", lambda request, errors=errors: errors.append(request.url))
            page.goto(path.as_uri())
            page.wait_for_load_state("networkidle")  # the index of the reference leads on to another page
            state = page.evaluate(PAGE)
            if state["wide"] > 1:
                found.append(f"{width} {scheme}: {state['wide']} pixels too wide")
            found += [
                f"{width} {scheme}: {kind} {state[kind]}"
                for kind in ("broken", "silent", "untitled", "faint")
                if state[kind]
            ]
            found += [f"{width} {scheme}: {error}" for error in errors]
            if pictures and scheme == "light" and width == 390:
                page.emulate_media(media="print")
                page.set_viewport_size({"width": 794, "height": 1123})  # A4
                page.screenshot(path=str(pictures / f"report-{path.stem}-print.png"))
            page.close()
        bad += bool(found)
        for line in found:
            print(f"  {path.name}, {line}", flush=True)
    print(f"report: {len(pages)} pages on a screen and a phone, light and dark, {bad} with problems", flush=True)
    return bad


def restarted(page, runs: Path) -> bool:
    """Restart the kernel once a group of networks is finished: what was finished must be found again, unchanged."""

    def finished() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in runs.glob("*.json")} if runs.is_dir() else {}

    run_all(page, until=finished)
    before = finished()
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    time.sleep(3)
    run_all(page)
    after = finished()
    good = bool(before) and all(after.get(name) == when for name, when in before.items())
    print(
        f"kernel restart: {len(before)} finished groups, {'all kept' if good else 'LOST'}; {len(after)} in the end",
        flush=True,
    )
    return good


def picture(page, path: Path) -> None:
    """A screenshot around the first figure."""
    for _ in range(3):  # cells that come into view get their heights, and move it
        page.evaluate("""() => {
          const panel = window.jupyterapp.shell.currentWidget.content;
          const index = panel.widgets.findIndex(w => w.model.type === 'code' && w.model.outputs.toJSON().some(o => o.data && o.data['image/png']));
          panel.scrollToItem(Math.max(index, 0), 'start');
        }""")
        time.sleep(1)
    page.screenshot(path=str(path))


if __name__ == "__main__":
    sys.exit(main())
