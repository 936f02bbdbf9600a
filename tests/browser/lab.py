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
  const now = code.findIndex(c => c.executionState === 'running');  // those that wait say so, too: the first one runs
  return {
    status: kernel ? kernel.status : 'none',
    cells: code.length,
    run: code.filter(c => c.executionCount !== null).length,
    errors: outputs.filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue),
    warnings: outputs.filter(o => o.name === 'stderr').map(o => String(o.text).slice(0, 300)),
    pictures: outputs.filter(o => o.data && o.data['image/png']).length,
    now: now,
    says: now < 0 ? '' : code[now].outputs.toJSON().filter(o => o.name === 'stdout').map(o => String(o.text)).join('').trim(),
  };
}"""
SLOW = 10.0  # seconds after which a cell has to have shown how far it is


def open_notebook(page, server: Server, name: str, *, reset: bool = True) -> dict:
    """Open a notebook, in a fresh window arrangement or in the one that was left; returns its state."""
    page.goto(server.url(f"lab/tree/{name}") + ("&reset" if reset else ""))
    page.wait_for_function(STATE, timeout=120_000)
    return page.evaluate(STATE)


def run_all(page, *, until=None) -> dict:
    """Run All; returns the state at the end, or as soon as ``until`` says so.

    ``slow`` has the cells that ran for more than ten seconds, by number from 1: whether they printed while they ran how far they were.
    """
    page.evaluate("() => { window.jupyterapp.commands.execute('runmenu:run-all'); }")
    end, began, said, slow = time.time() + 60 * MINUTES, {}, set(), {}
    while time.time() < end:
        time.sleep(0.5)
        state = page.evaluate(STATE)
        if state is None:
            continue
        now = state["now"] + 1
        began.setdefault(now, time.time())
        said |= {now} if state["says"] else set()
        if now and time.time() - began[now] > SLOW:
            slow[now] = now in said
        if state["errors"] or (until and until()):
            break
        if state["run"] == state["cells"] and state["status"] == "idle" and not now:
            break
    else:
        raise RuntimeError(f"still running after {MINUTES} minutes: {state}")
    return state | {"slow": slow}


def theme(page, name: str) -> None:
    page.evaluate(f"() => window.jupyterapp.commands.execute('apputils:change-theme', {{theme: '{name}'}})")
    time.sleep(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help="leading digits; default all")
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
                for path in chosen:
                    page = window.new_page(viewport={"width": 1400, "height": 1000})
                    start = time.time()
                    open_notebook(page, server, path.name)
                    undisturbed = True
                    if path.stem.startswith("03"):
                        page, undisturbed = disturbed(window, page, server, path.name, folder / "runs")
                    state = run_all(page)
                    silent = [number for number, said in state["slow"].items() if not said]
                    wrong = state["errors"] or state["warnings"] or (silent and f"cells that said nothing: {silent}")
                    good = undisturbed and not wrong and state["run"] == state["cells"]
                    failures += not good
                    said = f"{state['pictures']} figures, {len(state['slow'])} cells over {SLOW:.0f} s, {len(silent)} of them without progress"
                    print(
                        f"{path.stem}: {'ok' if good else 'FAILED'}, {state['cells']} cells, {said}, {time.time() - start:.0f} s",
                        flush=True,
                    )
                    if not good:
                        print(f"  {wrong or state}", flush=True)
                    if given.pictures:
                        for name in ("JupyterLab Light", "JupyterLab Dark"):
                            theme(page, name)
                            picture(page, given.pictures / f"{path.stem}-{name.split()[1].lower()}.png")
                        theme(page, "JupyterLab Light")
                    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
                    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
                    page.close()
        finally:
            server.stop()
    return 1 if failures else 0


def finished(runs: Path) -> dict[str, int]:
    """Records of finished groups of networks, with the times at which they were written."""
    return {p.name: p.stat().st_mtime_ns for p in runs.glob("*.json")} if runs.is_dir() else {}


def disturbed(window, page, server: Server, name: str, runs: Path) -> tuple[object, bool]:
    """Restart the kernel once a group of networks is finished, close the page once another one is, and open it again.

    The kernel has to go on without the page: the page opened again says that it is busy, or more groups are finished. What was finished has to stay.

    Returns:
        The new page, and whether all that was so.
    """
    run_all(page, until=lambda: finished(runs))
    first = finished(runs)
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    time.sleep(3)
    run_all(page, until=lambda: len(finished(runs)) > len(first))
    second = finished(runs)
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.close()
    time.sleep(3)
    page = window.new_page(viewport={"width": 1400, "height": 1000})
    open_notebook(page, server, name, reset=False)
    page.wait_for_function(f"() => !['unknown', 'connecting'].includes(({STATE})().status)", timeout=60_000)
    status, meanwhile = page.evaluate(STATE)["status"], len(finished(runs)) - len(second)
    run_all(page)
    last = finished(runs)
    lost = [name for earlier in (first, second) for name, when in earlier.items() if last.get(name) != when]
    print(f"kernel restarted after {len(first)} groups of networks, page closed after {len(second)}: kernel {status} and {meanwhile} more when it was "
          f"opened again, {len(lost)} groups lost or trained again, {len(last)} in the end", flush=True)  # fmt: skip
    return page, bool(first) and not lost and (status == "busy" or meanwhile > 0)


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
