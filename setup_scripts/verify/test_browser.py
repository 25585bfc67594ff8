"""The browser opens a local page and shows what its script has made of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.full


def test_browser_opens_a_page_and_runs_its_script(home: Path, as_user: Callable[..., str]) -> None:
    (home / "page.html").write_text("<p id=x>no</p><script>x.textContent = 'sum ' + (40 + 2)</script>")
    (home / "page.html").chmod(0o644)
    # Its own sandbox needs user name spaces, which a container may not give.
    in_container = subprocess.run(["systemd-detect-virt", "-q", "--container"], check=False).returncode == 0
    flags = ["--no-sandbox"] if in_container else []
    dom = as_user(
        "chromium", "--headless", "--disable-gpu", "--disable-dev-shm-usage", *flags, f"--user-data-dir={home}/profile",
        "--dump-dom", f"file://{home}/page.html",
    )  # fmt: skip
    assert "sum 42" in dom, f"chromium did not run the page's script: {dom[-1000:]}"
    assert as_user("chromedriver", "--version").startswith("ChromeDriver")
