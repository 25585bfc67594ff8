"""Pages: what they show of what is on record, what they change, and that nothing stored becomes a part of them (F33)."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from urllib.parse import quote

import pytest

from agent.model.build import BuildState
from agent.model.outcome import Outcome
from agent.model.person import Role
from agent.model.server import OrderKind
from agent.queue.carrier import Carrier
from agent.store import audit, builds, images, servers
from agent.store.engine import Store
from tests.integration.conftest_store import claim, make_build, make_server
from tests.integration.console.conftest import Browser
from tests.integration.console.filled import fill

NASTY = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>\x00\u202e"
PAGES = (
    "/", "/builds", "/builds?state=ended&project=x", "/builds/build-1", "/builds/build-1/output?attempt=1&step=0",
    "/servers", "/servers?all=1", "/servers/server-1", "/images", "/fleet", "/audit", "/audit?actor=ann", "/account",
)  # fmt: skip


class Elements(HTMLParser):
    """Notes the elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one."""
        self.tags.append(tag)
        self.attributes += attrs


def pages_of(store: Store) -> list[str]:
    """Return every page, the images' own ones among them."""
    return [*PAGES, *(f"/images/{quote(it.id)}" for it in images.list_images(store))]


@pytest.mark.parametrize("role", list(Role))
def test_every_page_shows_what_is_on_record(store: Store, browser: Browser, role: Role) -> None:
    fill(store, "shop")
    client = browser(role)
    for path in pages_of(store):
        answer = client.get(path)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        assert "<h1>" in answer.text
        assert ('<form method="post" action="/builds/build-1/cancel"' in answer.text) is (
            path == "/builds/build-1" and role is not Role.VIEWER
        )


def test_every_page_of_an_empty_database_says_what_to_do(browser: Browser) -> None:
    client = browser(Role.VIEWER)
    told = {path: client.get(path).text for path in ("/", "/builds", "/servers", "/images", "/fleet")}
    assert "All is well." in told["/"]
    assert "build-agent submit" in told["/builds"]
    assert "build-agent run" in told["/servers"]
    assert "build-agent images bake" in told["/images"]
    assert "build-agent fleet create" in told["/fleet"]


@pytest.mark.parametrize("path", PAGES)
def test_f33_script_in_every_stored_text_is_text(store: Store, browser: Browser, path: str) -> None:
    fill(store, NASTY, printed=NASTY.encode() + b"\n\x1b]8;;javascript:alert(3)\x07link\x1b]8;;\x07\n")
    text = browser(Role.ADMIN).get(path).text
    found = Elements(text)
    # The one script is ours, and nothing listens to anything.
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "style"]
    assert not [value for name, value in found.attributes if name == "href" and "javascript" in (value or "")]
    assert "<script>alert" not in text


def test_overview_says_what_is_wrong(store: Store, browser: Browser) -> None:
    fill(store, "shop")
    text = browser(Role.VIEWER).get("/").text
    assert "no controller leads the fleet" in text
    assert "queue nobody&#39;s is served by no pool and no server" in text


def test_build_is_found_by_the_beginning_of_its_id_and_an_unknown_one_is_told(
    store: Store, browser: Browser
) -> None:
    make_build(store, "abcdef-1")
    client = browser(Role.VIEWER)
    assert "abcdef-1" in client.get("/builds/abcd").text
    answer = client.get("/builds/nothing")
    assert (answer.status_code, "no build" in answer.text) == (404, True)
    assert client.get("/nowhere").status_code == 404
    for bad in ("/builds?state=odd", "/builds?before=odd", "/builds/x%00y", "/servers/%ff", "/images/'"):
        assert client.get(bad).status_code == 404, bad
    for bad in ("/builds/abcd/output", "/builds/abcd/output?attempt=0&step=1", "/audit?before=1e99"):
        assert client.get(bad).status_code == 422, bad


def test_builds_are_paged_by_key_and_filtered(store: Store, browser: Browser) -> None:
    for number in range(120):
        make_build(store, f"build-{number:03}", project="even" if number % 2 == 0 else "odd")
    client = browser(Role.VIEWER)
    seen: list[str] = []
    path = "/builds?project=even"
    for _ in range(5):
        text = client.get(path).text
        seen += [part.split('"')[0] for part in text.split('href="/builds/')[1:]]
        if 'rel="next"' not in text:
            break
        path = unescape(re.findall(r'href="([^"]+)" rel="next"', text)[0])
    assert seen == [f"build-{number:03}" for number in range(118, -1, -2)]


def test_output_is_shown_as_a_terminal_shows_it(store: Store, browser: Browser) -> None:
    fill(store, "shop")
    text = browser(Role.VIEWER).get("/builds/build-1/output?attempt=1&step=0").text
    assert '<span id="line-1" data-line="1"><samp class="f2">green</samp> and plain' in text
    assert "50%" not in text
    assert 'data-line="3">100%' in text


def test_build_is_cancelled_and_retried_with_who_did_it(
    store: Store, browser: Browser, carrier: Carrier
) -> None:
    make_build(store)
    client = browser(Role.OPERATOR)
    answer = client.post("/builds/build-1/cancel", data={"why": "wrong branch"})
    assert "had not begun" in client.get(answer.headers["location"]).text
    build = builds.get(store, "build-1")
    assert (build.outcome, build.cancel_by) == (Outcome.CANCELLED, "operator-1")
    assert client.post("/builds/build-1/cancel").status_code == 409
    answer = client.post("/builds/build-1/retry")
    assert "queued again" in client.get(answer.headers["location"]).text
    assert builds.get(store, "build-1").state is BuildState.QUEUED
    assert carrier.waiting("builds") == ["build-1"]
    done = [(it.action, it.actor) for it in audit.list_entries(store, subject_id="build-1")][:2]
    assert done == [("build.retry", "operator-1"), ("build.cancel", "operator-1")]


def test_server_is_given_orders_with_a_reason_and_a_limit(store: Store, browser: Browser) -> None:
    make_server(store)
    client = browser(Role.OPERATOR)
    order = {"kind": "quarantine", "note": "disk errors", "limit": "2h"}
    assert client.post("/servers/server-1/order", data=order).status_code == 303
    server = servers.get(store, "server-1")
    assert (server.wanted, server.wanted_by) == (OrderKind.QUARANTINE, "operator-1")
    assert server.wanted_note == "disk errors"
    text = client.get("/servers/server-1").text
    assert "quarantine by operator-1: disk errors" in text
    answer = client.post("/servers/server-1/order", data={"kind": "drain", "limit": "soon"})
    assert (answer.status_code, "10min" in answer.text) == (422, True)
    assert client.post("/servers/server-1/order", data={"kind": "dance"}).status_code == 422
    assert client.post("/servers/nobody/order", data={"kind": "drain"}).status_code == 404
    assert servers.get(store, "server-1").wanted is OrderKind.QUARANTINE


def test_running_build_stands_on_its_servers_page(store: Store, browser: Browser) -> None:
    make_server(store)
    make_build(store, project="bakery")
    assert claim(store) is not None
    assert "bakery" in browser(Role.VIEWER).get("/servers/server-1").text
