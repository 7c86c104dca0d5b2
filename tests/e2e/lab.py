"""A real JupyterLab on a copy of the project, and a browser that looks at it. No state of the user's own is read or written."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
SIZE = {"width": 1280, "height": 800}
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # else cells out of sight are not in the page
}


def find_browser() -> str:
    """Path of chromium or chrome. Raises RuntimeError that says what to install."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise RuntimeError("no chromium: `apt-get install chromium` on Debian or Ubuntu, or any Chrome on the PATH")


class Lab:
    """A running server: its address, and what its kernels are doing."""

    def __init__(self, port: int, token: str):
        self.url, self.token = f"http://127.0.0.1:{port}", token

    def ask(self, path: str, method: str = "GET") -> object:
        """The server's answer, read as JSON; None for an empty one."""
        request = urllib.request.Request(f"{self.url}/{path}", method=method, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def wait(self, done, seconds: float, what: str) -> None:
        """Until `done()` is true; TimeoutError with `what` after so many seconds. Connection errors count as not yet."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if done():
                    return
            except OSError:  # the server is not there yet; HTTP errors are OSErrors as well
                pass
            time.sleep(0.1)
        raise TimeoutError(f"{what} took more than {seconds:.0f} s")

    def sessions(self, notebook: str) -> list[dict]:
        """The sessions of a notebook, given by its file's name."""
        return [session for session in self.ask("api/sessions") if Path(session["path"]).name == notebook]

    def kernel_is_idle(self, notebook: str) -> bool:
        """Whether its kernel is connected to a page and has nothing to do (the page's own indicator says so too early)."""
        kernels = [session["kernel"] for session in self.sessions(notebook)]
        return any(k["execution_state"] == "idle" and k["connections"] >= 1 for k in kernels)


@contextmanager
def running_lab(folder: Path, fast: bool = True) -> Iterator[Lab]:
    """JupyterLab on a copy of the notebooks in `folder`, with settings, history and caches of its own; stopped at the end."""
    project = folder / "project"
    shutil.copytree(ROOT / "notebooks", project / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("vidseg_core", "data"):
        (project / name).symlink_to(ROOT / name)
    for name, values in SETTINGS.items():
        file = folder / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython", "MPLCONFIGDIR": "mpl", "JUPYTERLAB_SETTINGS_DIR": "lab/user-settings",
        "JUPYTERLAB_WORKSPACES_DIR": "lab/workspaces",
    }  # fmt: skip
    environment = os.environ | {name: str(folder / part) for name, part in own.items()} | {"PYTHONPATH": str(project)}
    environment["VIDSEG_FAST"] = "1" if fast else "0"
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={project}"]  # fmt: skip
    with (folder / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=project)
        try:
            lab = Lab(port, token)
            lab.wait(lambda: lab.ask("api/status"), 60, "starting JupyterLab")
            yield lab
        finally:
            server.terminate()
            server.wait(20)


@contextmanager
def running_browser() -> Iterator[Callable]:
    """A headless chromium, as the function that opens a page of 1280x800 in it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS, headless=True)
        try:
            yield lambda: browser.new_page(viewport=SIZE)
        finally:
            browser.close()


class Notebook:
    """One notebook in a page of its own."""

    def __init__(self, lab: Lab, page, name: str):
        self.lab, self.page, self.name = lab, page, name
        page.goto(f"{lab.url}/lab/workspaces/{Path(name).stem}/tree/notebooks/{name}?reset&token={lab.token}")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        lab.wait(self.is_idle, 60, "starting the kernel")

    def is_idle(self) -> bool:
        return self.lab.kernel_is_idle(self.name)

    def start(self) -> None:
        """Run All Cells from the menu."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.locator("[data-command='runmenu:run-all']").click()

    def finish(self, seconds: float = 600) -> None:
        """Wait for the last cell, or for an error."""
        prompts = self.page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt")
        finished = lambda: all(p.strip("[]: ").isdecimal() for p in prompts.all_inner_texts())  # noqa: E731
        self.lab.wait(lambda: finished() or self.errors(), seconds, "running the notebook")
        self.page.bring_to_front()  # a page behind another takes no focus, and keys are lost
        self.page.wait_for_timeout(1000)  # the last picture is on its way

    def close(self) -> None:
        """Stop the kernel and close the page."""
        for session in self.lab.sessions(self.name):
            self.lab.ask(f"api/sessions/{session['id']}", "DELETE")
        self.page.close()

    def errors(self) -> list[str]:
        """The text of every error that a cell or a widget shows."""
        stderr = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"
        failed = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
        broken = ".jupyter-widgets-error-widget, .jp-OutputArea-output:has-text('Error displaying widget')"
        said = [t for t in self.page.locator(stderr).all_inner_texts() if "Error" in t or "Traceback" in t]
        return said + self.page.locator(f"{failed}, {broken}").all_inner_texts()

    def explorer(self, number: int):
        """The explorer that stands at this place among all of the notebook's, counted from 0."""
        return self.page.locator(".vidseg-explorer").nth(number)

    def changed(self, explorer, before: str, seconds: float = 60) -> str:
        """Wait until the explorer's picture is another than `before`, then until it rests (a drag may redraw it many times);
        returns it."""
        self.lab.wait(lambda: self.picture(explorer) != before, seconds, "redrawing the picture")
        seen = ""
        while seen != self.picture(explorer):
            seen = self.picture(explorer)
            self.page.wait_for_timeout(500)
            self.lab.wait(self.is_idle, seconds, "coming to rest")
        return seen

    def picture(self, explorer) -> str:
        """What identifies the explorer's present picture: the address of its image."""
        return explorer.locator("img.vidseg-picture").get_attribute("src")
