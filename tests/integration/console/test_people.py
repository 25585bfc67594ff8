"""Who is let in, for how long, and as what (F33)."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from agent.console import application, password, people
from agent.errors import StateConflict
from agent.model.person import Role, Scope
from agent.store import audit, sessions, tokens, users
from agent.store.engine import Store
from agent.store.tables_console import api_tokens, sign_in_failures
from agent.store.tables_console import sessions as sessions_table
from tests.integration.conftest_store import make_build, make_server
from tests.integration.console.conftest import PASSWORD, Browser

OPEN = {"/sign-in", "/sign-out"}
POSTS: tuple[tuple[str, dict[str, str], Role], ...] = (
    ("/builds/build-1/cancel", {}, Role.OPERATOR),
    ("/builds/build-1/retry", {}, Role.OPERATOR),
    ("/servers/server-1/order", {"kind": "drain"}, Role.OPERATOR),
)


def routes() -> list[APIRoute]:
    """Return every route of the console."""
    found = [it for router in application.ROUTERS for it in router.routes if isinstance(it, APIRoute)]
    assert len(found) > 10
    return found


def token_of(client: TestClient) -> str:
    """Return what a browser holds."""
    return str(client.cookies["build-agent"])


def move_back(store: Store, column: str, by: timedelta) -> None:
    """Make sessions older than they are."""
    with store.begin() as connection:
        [row] = connection.execute(sessions_table.select()).mappings()
        connection.execute(sessions_table.update().values({column: row[column] - by}))


def test_f33_without_a_session_every_page_asks_to_sign_in_and_changes_nothing(
    store: Store, browser: Browser
) -> None:
    make_build(store)
    make_server(store)
    client = browser()
    for route in routes():
        if route.path in OPEN:
            continue
        path = re.sub(r"\{[^}]+\}", "x", route.path)
        for method in route.methods or ():
            answer = client.request(method, path, params={"attempt": 1, "step": 1}, data={"kind": "drain"})
            assert answer.status_code == 303, f"{method} {path}: {answer.status_code}"
            assert answer.headers["location"].startswith("/sign-in")
    assert audit.list_entries(store, subject_kind="build") == []


@pytest.mark.parametrize(("path", "data", "needed"), POSTS)
def test_f33_viewer_is_refused_what_an_operator_may(
    store: Store, browser: Browser, path: str, data: dict[str, str], needed: Role
) -> None:
    make_build(store)
    make_server(store)
    answer = browser(Role.VIEWER).post(path, data=data)
    assert answer.status_code == 403
    assert f"takes the role {needed}" in answer.text
    assert [it.action for it in audit.list_entries(store, actor="viewer-1")] == ["session.begin"]


def test_f33_every_route_that_changes_something_is_tried_with_a_viewer() -> None:
    tried = {re.sub(r"build-1|server-1", "*", path) for path, _, _ in POSTS}
    own = {"/sign-in", "/sign-out", "/account/sessions/*/end"}
    changing = {
        re.sub(r"\{[^}]+\}", "*", it.path) for it in routes() if not set(it.methods or ()) <= {"GET", "HEAD"}
    }
    assert changing == tried | own


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "", "origin": "https://evil.test"},
        {"sec-fetch-site": "", "origin": "null"},
    ],
)
def test_f33_post_from_another_site_changes_nothing(
    store: Store, browser: Browser, headers: dict[str, str]
) -> None:
    make_build(store)
    client = browser(Role.ADMIN)
    if not headers["sec-fetch-site"]:
        del client.headers["sec-fetch-site"]
        headers = {"origin": headers["origin"]}
    answer = client.post("/builds/build-1/cancel", headers=headers)
    assert answer.status_code == 403
    assert "another site" in answer.text
    assert audit.list_entries(store, subject_kind="build") == []


def test_post_of_an_older_browser_from_here_is_taken(store: Store, browser: Browser) -> None:
    make_build(store)
    client = browser(Role.OPERATOR)
    del client.headers["sec-fetch-site"]
    answer = client.post("/builds/build-1/cancel", headers={"origin": "http://console.test"})
    assert answer.headers["location"] == "/builds/build-1?done=cancelled"


def test_f33_session_is_a_new_one_each_time_and_over_after_sign_out(store: Store, browser: Browser) -> None:
    client = browser()
    users.add(store, "ann", Role.VIEWER, by="tests", password_hash=password.make(PASSWORD))
    client.cookies.set("build-agent", "planted")
    answer = client.post("/sign-in", data={"name": "ann", "password": PASSWORD, "next": "/builds"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/builds")
    cookie = answer.headers["set-cookie"]
    assert "planted" not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    [row] = sessions.list_sessions(store, user_name="ann")
    token = re.match(r"build-agent=([^;]+)", cookie)
    assert token is not None
    # What the browser holds is nowhere on record.
    assert people.digest(token[1]).startswith(row.key)
    client.cookies.clear()
    client.cookies.set("build-agent", token[1])
    assert client.get("/").status_code == 200
    client.post("/sign-out")
    client.cookies.set("build-agent", token[1])
    assert client.get("/").headers["location"] == "/sign-in?next=%2F"


def test_f33_with_https_the_cookie_is_for_this_host_and_https_alone(browser: Browser, store: Store) -> None:
    url = "https://builds.example.com"
    client = browser(console_url=url)
    users.add(store, "ann", Role.VIEWER, by="tests", password_hash=password.make(PASSWORD))
    answer = client.post("/sign-in", data={"name": "ann", "password": PASSWORD})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-build-agent=")
    assert "Secure" in cookie
    assert "Path=/" in cookie
    assert "Domain" not in cookie
    assert answer.headers["strict-transport-security"].startswith("max-age=")
    other = client.get("/", headers={"host": "other.example.com"})
    assert (other.status_code, "builds.example.com" in other.text) == (421, True)


@pytest.mark.parametrize(
    ("column", "by"), [("expires_at", timedelta(days=15)), ("seen_at", timedelta(days=2))]
)
def test_f33_session_ends_when_it_is_old_or_nobody_used_it(
    store: Store, browser: Browser, column: str, by: timedelta
) -> None:
    client = browser(Role.ADMIN)
    assert client.get("/builds").status_code == 200
    move_back(store, column, by)
    assert client.get("/builds").status_code == 303


def test_f33_who_is_disabled_demoted_or_has_another_password_is_so_at_once(
    store: Store, browser: Browser
) -> None:
    browser(Role.ADMIN)
    client = browser(Role.OPERATOR)
    make_build(store)
    users.change_role(store, "operator-2", Role.VIEWER, by="tests")
    assert client.post("/builds/build-1/cancel").status_code == 403
    users.change_password(store, "operator-2", password.make("another password"), by="tests")
    assert client.get("/").status_code == 303
    client.post("/sign-in", data={"name": "operator-2", "password": "another password"})
    assert client.get("/").status_code == 200
    users.disable(store, "operator-2", by="tests")
    assert client.get("/").status_code == 303
    assert (
        client.post("/sign-in", data={"name": "operator-2", "password": "another password"}).status_code
        == 401
    )


def test_f33_brute_force_is_slowed_by_name_and_by_address(store: Store, browser: Browser) -> None:
    client = browser()
    users.add(store, "ann", Role.ADMIN, by="tests", password_hash=password.make(PASSWORD))
    for _ in range(5):
        answer = client.post("/sign-in", data={"name": "ann", "password": "a guess"})
        assert (answer.status_code, "do not fit" in answer.text) == (401, True)
    # Even the right one has to wait now, and so has any other name from here.
    for name in ("ann", "bob"):
        answer = client.post("/sign-in", data={"name": name, "password": PASSWORD})
        assert (answer.status_code, "too many failures" in answer.text) == (401, True)
    with store.begin() as connection:
        connection.execute(sign_in_failures.delete())
    assert client.post("/sign-in", data={"name": "ann", "password": PASSWORD}).status_code == 303


def test_f33_unknown_name_reads_like_a_wrong_password(store: Store, browser: Browser) -> None:
    client = browser()
    users.add(store, "ann", Role.ADMIN, by="tests", password_hash=password.make(PASSWORD))
    known = client.post("/sign-in", data={"name": "ann", "password": "no"}).text
    unknown = client.post("/sign-in", data={"name": "eve", "password": "no"}).text
    assert "ann" in known
    plain = re.compile(r"<time.*?</time>|ann|eve")
    assert plain.sub("", known) == plain.sub("", unknown)


@pytest.mark.parametrize(
    "there", ["https://evil.test", "//evil.test", "/\\evil.test", "javascript:alert(1)", "/\tx"]
)
def test_f33_sign_in_leads_nowhere_else(store: Store, browser: Browser, there: str) -> None:
    client = browser(Role.VIEWER)
    assert client.get("/sign-in", params={"next": there}).headers["location"] == "/"
    answer = client.post("/sign-in", data={"name": "viewer-1", "password": PASSWORD, "next": there})
    assert answer.headers["location"] == "/"


def test_where_nobody_may_sign_in_the_page_says_how_the_first_may(browser: Browser) -> None:
    assert "build-agent users add NAME --role admin" in browser().get("/sign-in").text


@pytest.mark.parametrize("path", ["/sign-in", "/", "/nowhere", "/static/console.css", "/static/nothing.js"])
def test_f33_every_answer_says_what_a_browser_may_do_with_it(browser: Browser, path: str) -> None:
    answer = browser().get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert ("no-store" in answer.headers.get("cache-control", "")) is not path.startswith("/static/")


def test_session_of_ones_own_can_be_ended_and_anothers_not(store: Store, browser: Browser) -> None:
    ann, bob = browser(Role.VIEWER), browser(Role.VIEWER)
    [own] = sessions.list_sessions(store, user_name="viewer-1")
    assert own.key in ann.get("/account").text
    assert bob.post(f"/account/sessions/{own.key}/end").status_code == 404
    assert ann.get("/").status_code == 200
    assert ann.post(f"/account/sessions/{own.key}/end").status_code == 303
    assert ann.get("/").status_code == 303
    assert audit.list_entries(store)[0].action == "session.revoke"


def put_token(store: Store, *scopes: Scope, role: Role = Role.ADMIN) -> str:
    """Put a token of somebody on record; return it."""
    users.add(store, "ci", role, by="tests")
    token = people.make_token()
    tokens.create(
        store, "tests", people.digest(token), user_name="ci", scopes=scopes, lasts_s=3600, by="tests"
    )
    return token


@pytest.mark.parametrize(
    ("scopes", "role", "cancel", "order"),
    [
        ((Scope.READ,), Role.ADMIN, 403, 403),
        ((Scope.BUILDS,), Role.ADMIN, 303, 403),
        ((Scope.BUILDS,), Role.VIEWER, 403, 403),
        ((Scope.FLEET,), Role.OPERATOR, 303, 303),
        ((Scope.ADMIN,), Role.VIEWER, 403, 403),
    ],
)
def test_f33_token_does_what_its_scopes_and_its_person_may(
    store: Store, browser: Browser, scopes: tuple[Scope, ...], role: Role, cancel: int, order: int
) -> None:
    make_build(store)
    make_server(store)
    token = put_token(store, *scopes, role=role)
    client = browser()
    client.headers["authorization"] = f"Bearer {token}"
    assert client.get("/builds").status_code == 200
    assert client.post("/builds/build-1/cancel").status_code == cancel
    assert client.post("/servers/server-1/order", data={"kind": "drain"}).status_code == order
    if cancel == 303:
        [entry] = audit.list_entries(store, subject_kind="build")
        assert re.fullmatch(r"ci, token [0-9a-f]{12}", entry.actor)


def test_f33_token_that_is_revoked_old_or_made_up_opens_nothing(store: Store, browser: Browser) -> None:
    token = put_token(store, Scope.READ)
    client = browser(Role.ADMIN)
    client.headers["authorization"] = f"Bearer {token}"
    assert client.get("/").status_code == 200
    for wrong in ("Bearer bat_made-up", "Bearer", "Basic YW5uOng=", f"Bearer {token}x"):
        client.headers["authorization"] = wrong
        # Nor does the session that the browser has count then.
        assert client.get("/").status_code == 303, wrong
    client.headers["authorization"] = f"Bearer {token}"
    [made] = tokens.list_tokens(store)
    assert made.used_at is not None
    tokens.revoke(store, made.id, by="tests")
    assert client.get("/").status_code == 303
    with store.begin() as connection:
        connection.execute(
            api_tokens.update().values(revoked_at=None, expires_at=made.created_at - timedelta(days=1))
        )
    assert client.get("/").status_code == 303


def test_last_admin_stays(store: Store) -> None:
    users.add(store, "ann", Role.ADMIN, by="tests")
    users.add(store, "bob", Role.VIEWER, by="tests")
    for act in (
        lambda: users.disable(store, "ann", by="ann"),
        lambda: users.remove(store, "ann", by="ann"),
        lambda: users.change_role(store, "ann", Role.OPERATOR, by="ann"),
    ):
        with pytest.raises(StateConflict, match="last admin"):
            act()
    users.change_role(store, "bob", Role.ADMIN, by="ann")
    users.remove(store, "ann", by="bob")
    assert [it.name for it in users.list_users(store)] == ["bob"]
