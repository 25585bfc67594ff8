"""The console in a browser: readable and operable for everybody, with and without scripts, and quiet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page

from agent.model.build import BuildState
from agent.model.outcome import Outcome
from agent.model.server import OrderKind
from agent.store import builds, output, servers
from tests.browser.conftest import PASSWORD, Site
from tests.integration.conftest_store import cut, make_build
from tests.integration.console.filled import fill

AXE = Path(__file__).parent / "axe.min.js"
# With SCREENSHOTS=1 the pictures of the documentation are made anew.
PICTURES = Path(__file__).parents[2] / "docs" / "images" if os.environ.get("SCREENSHOTS") == "1" else None
PAGES = {
    "overview": "/",
    "builds": "/builds",
    "build": "/builds/build-1",
    "output": "/builds/build-1/output?attempt=1&step=0",
    "servers": "/servers",
    "server": "/servers/server-1",
    "images": "/images",
    "image": "/images/img-shop",
    "fleet": "/fleet",
    "audit": "/audit",
    "account": "/account",
    "nowhere": "/nowhere",
}

pytestmark = pytest.mark.slow


@contextmanager
def opened(chromium: Browser, site: Site, name: str | None = "ann", **more: Any) -> Iterator[Page]:
    """Open a browser window of somebody who is signed in, and hear what its console and its network say."""
    context = chromium.new_context(base_url=site.url, **more)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda it: said.append(it.text) if it.type in ("error", "warning") else None)
    page.on("pageerror", lambda it: said.append(str(it)))
    page.on("request", lambda it: None if it.url.startswith((site.url, "data:")) else said.append(it.url))
    if name is not None:
        page.goto("/sign-in")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/")
    yield page
    context.close()
    # A page that is not there says so in the console, and is meant to.
    assert [it for it in said if "404" not in it] == []


def faults(page: Page) -> list[str]:
    """Return what axe finds that is serious."""
    # Under the policy of the pages no script but theirs runs: this one comes in by the debugger's way.
    page.evaluate(AXE.read_text())
    found = page.evaluate("() => axe.run(document)")["violations"]
    return [
        f"{it['id']}: {node['html'][:200]}"
        for it in found
        if it["impact"] in ("serious", "critical")
        for node in it["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits_a_phone(
    chromium: Browser, site: Site, scheme: Literal["light", "dark"]
) -> None:
    fill(site.store, "shop")
    with opened(chromium, site, color_scheme=scheme, viewport={"width": 1200, "height": 800}) as page:
        for name, path in PAGES.items():
            page.set_viewport_size({"width": 1200, "height": 800})
            page.goto(path)
            assert faults(page) == [], path
            if PICTURES is not None and scheme == "light" and name in ("overview", "build", "output"):
                page.screenshot(path=PICTURES / f"console-{name}.png")
            page.set_viewport_size({"width": 320, "height": 640})
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= 320, f"{path} is {width} wide"
            assert faults(page) == [], f"{path} on a phone"


def test_sign_in_page_is_accessible_and_says_what_went_wrong(chromium: Browser, site: Site) -> None:
    with opened(chromium, site, None) as page:
        page.goto("/builds?state=ended")
        assert faults(page) == []
        page.get_by_label("Name").fill("ann")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_label("Password").press("Enter")
        # To where one was on the way.
        page.wait_for_url("**/builds?state=ended")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/sign-in?done=signed-out")
        assert "You are signed out." in page.inner_text("main")


def test_operator_cancels_and_retries_a_build_without_scripts(chromium: Browser, site: Site) -> None:
    make_build(site.store)
    with opened(chromium, site, java_script_enabled=False) as page:
        page.get_by_role("link", name="Builds", exact=True).click()
        page.get_by_role("link", name="build-1").click()
        page.get_by_label("Why").fill("wrong branch")
        page.get_by_role("button", name="Cancel the build").click()
        assert "The build is cancelled" in page.inner_text("main")
        assert builds.get(site.store, "build-1").outcome is Outcome.CANCELLED
        page.get_by_role("button", name="Run it again").click()
        assert "The build is queued again." in page.inner_text("main")
    assert builds.get(site.store, "build-1").state is BuildState.QUEUED


def test_operator_gives_an_order_and_a_viewer_can_not(chromium: Browser, site: Site) -> None:
    fill(site.store, "shop")
    with opened(chromium, site, "vic") as page:
        page.goto("/servers/server-1")
        assert page.get_by_role("button", name="Give the order").count() == 0
        page.goto("/builds/build-1")
        assert page.get_by_role("button", name="Cancel the build").count() == 0
    with opened(chromium, site) as page:
        page.goto("/servers/server-1")
        page.get_by_label("drain").check()
        page.get_by_label("Why").fill("kernel update")
        page.get_by_role("button", name="Give the order").click()
        assert "The order is on record" in page.inner_text("main")
    server = servers.get(site.store, "server-1")
    assert (server.wanted, server.wanted_by, server.wanted_note) == (OrderKind.DRAIN, "ann", "kernel update")


def test_pages_follow_what_happens_and_leave_what_is_typed(chromium: Browser, site: Site) -> None:
    with opened(chromium, site) as page:
        page.goto("/builds")
        page.get_by_label("Project").fill("half a wo")
        make_build(site.store, project="bakery")
        page.get_by_text("bakery").wait_for(timeout=20_000)
        assert page.get_by_label("Project").input_value() == "half a wo"


def test_output_follows_a_step_that_prints(chromium: Browser, site: Site) -> None:
    printed = b"".join(b"line %d\n" % number for number in range(400))
    fill(site.store, "shop", printed)
    with opened(chromium, site) as page:
        page.goto(PAGES["output"])
        output_box = page.locator(".output")
        assert page.get_by_text("line 399").is_visible()
        more = cut(printed + b"the newest line\n", len(printed))
        output.append_chunks(site.store, more[1:])
        page.get_by_text("the newest line").wait_for(timeout=20_000)
        at_end = "it => it.scrollTop + it.clientHeight >= it.scrollHeight - 8"
        assert output_box.evaluate(at_end)


def test_keys_lead_to_pages_and_to_the_search(chromium: Browser, site: Site) -> None:
    with opened(chromium, site) as page:
        page.keyboard.press("g")
        page.keyboard.press("s")
        page.wait_for_url("**/servers")
        page.keyboard.press("g")
        page.keyboard.press("b")
        page.wait_for_url("**/builds")
        page.keyboard.press("/")
        page.keyboard.type("g")
        assert page.get_by_label("Project").input_value() == "g"
        assert page.url.endswith("/builds")
