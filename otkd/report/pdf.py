"""The page on paper, printed by a Chromium that is on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from otkd.core.errors import OtkdError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell", "chrome")
"""Names on the path, the first found is taken."""
GET_IT = (
    "it is printed by Chromium or Chrome, and neither is on the path: `apt-get install chromium`, or print report.html "
    "from any browser"
)
FLAGS = (
    *("--headless", "--disable-gpu", "--no-first-run", "--no-pdf-header-footer", "--disable-breakpad"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)
PATIENCE_S = 120.0
"""Seconds after which a browser is taken to hang."""


def browser() -> Path | None:
    """Chromium or Chrome, where one is on the path."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return None if found is None else Path(found)


def printed(page: str, browser: Path, patience_s: float = PATIENCE_S) -> bytes:
    """A page as PDF.

    Args:
        page: the whole HTML; what it links to is not loaded.
        browser: a Chromium or Chrome.
        patience_s: seconds after which it is ended.

    Raises:
        OtkdError: it fails, hangs or writes no PDF.
    """
    with TemporaryDirectory(prefix="otkd-pdf-", ignore_cleanup_errors=True) as folder:  # it may write while it dies
        source, target = Path(folder, "report.html"), Path(folder, "report.pdf")
        source.write_text(page, encoding="utf-8")
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's does not start as root
        places = [f"--user-data-dir={folder}/profile", f"--print-to-pdf={target}", source.as_uri()]
        said = _run([str(browser), *FLAGS, *sandbox, *places], patience_s)
        content = target.read_bytes() if target.exists() else b""
    if not content.startswith(b"%PDF"):
        raise OtkdError(f"{browser} printed nothing: {said or 'it said nothing'}")
    return content


def _run(command: list[str], patience_s: float) -> str:
    """Run to the end; the last line that it said."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise OtkdError(f"{command[0]} does not start: {error.strerror or error}") from error
    try:
        _, said = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        raise OtkdError(f"{command[0]} printed nothing in {patience_s:g} s") from None
    finally:
        _end(process)
    return next(iter(said.decode(errors="replace").strip().splitlines()[::-1]), "")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a browser with all its processes; does nothing where they have ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
