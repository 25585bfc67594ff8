"""Sessions of browsers, and failures to sign in. On record is the hash of what a browser holds, never that itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import RowMapping, delete, func, insert, select, update

from agent.errors import NotFound
from agent.model.person import Role, Session
from agent.store import audit
from agent.store.engine import Store
from agent.store.tables import UtcDateTime, now
from agent.store.tables_console import sessions, sign_in_failures, users

_KEY_LENGTH = 16
_SEEN_EVERY = timedelta(seconds=60)
_TEXT_LENGTH = 300


def begin(
    store: Store, user_name: str, token_hash: str, *, address: str, client: str, longest_s: float, via: str
) -> None:
    """Begin a session for somebody who has just proved who they are.

    Args:
        longest_s: it ends after so long, however busy it is.
        via: how they did: `password`, or an issuer.
    """
    with store.begin() as connection:
        at = connection.execute(select(now(connection))).scalar_one()
        connection.execute(delete(sessions).where(sessions.c.expires_at < at))
        connection.execute(
            insert(sessions).values(
                token_hash=token_hash,
                user_name=user_name,
                address=address[:_TEXT_LENGTH],
                client=client[:_TEXT_LENGTH],
                created_at=at,
                seen_at=at,
                expires_at=at + timedelta(seconds=longest_s),
            )
        )
        detail = {"from": address[:_TEXT_LENGTH], "via": via}
        audit.write(
            connection,
            actor=user_name,
            action="session.begin",
            subject_kind="user",
            subject_id=user_name,
            detail=detail,
        )


def find(store: Store, token_hash: str, *, idle_s: float) -> tuple[str, Role] | None:
    """Return whose session a token is, and their role now; `None` when it is over, or they may not sign in.

    Args:
        idle_s: a session that nobody used for so long is over.
    """
    with store.read() as connection:
        at = now(connection)
        query = (
            select(users.c.name, users.c.role, sessions.c.seen_at, at.label("at"))
            .join(users, users.c.name == sessions.c.user_name)
            .where(sessions.c.token_hash == token_hash, users.c.disabled_at.is_(None))
            .where(sessions.c.expires_at > at)
        )
        row = connection.execute(query).one_or_none()
    if row is None or row.at - row.seen_at > timedelta(seconds=idle_s):
        return None
    if row.at - row.seen_at > _SEEN_EVERY:
        with store.begin() as connection:
            of_token = sessions.c.token_hash == token_hash
            connection.execute(update(sessions).where(of_token).values(seen_at=row.at))
    return row.name, Role(row.role)


def end(store: Store, token_hash: str) -> None:
    """End a session by its token; nothing when it is over."""
    with store.begin() as connection:
        connection.execute(delete(sessions).where(sessions.c.token_hash == token_hash))


def revoke(store: Store, key: str, *, by: str, user_name: str | None = None) -> None:
    """End a session by its key, of anybody or of `user_name` alone. Raises: NotFound."""
    with store.begin() as connection:
        query = select(sessions.c.token_hash, sessions.c.user_name).where(
            sessions.c.token_hash.startswith(key, autoescape=True)
        )
        found = [it for it in connection.execute(query) if user_name in (None, it.user_name)]
        if len(key) != _KEY_LENGTH or len(found) != 1:
            raise NotFound(f"no session {key!r}: it is over already, or another's")
        connection.execute(delete(sessions).where(sessions.c.token_hash == found[0].token_hash))
        audit.write(
            connection,
            actor=by,
            action="session.revoke",
            subject_kind="user",
            subject_id=found[0].user_name,
            detail={"session": key},
        )


def list_sessions(store: Store, *, user_name: str | None = None) -> list[Session]:
    """Return the sessions that are not over, of one person or of all, the newest first."""
    with store.read() as connection:
        query = select(sessions).where(sessions.c.expires_at > now(connection))
        if user_name is not None:
            query = query.where(sessions.c.user_name == user_name)
        rows = connection.execute(query.order_by(sessions.c.created_at.desc(), sessions.c.token_hash))
        return [_session(row) for row in rows.mappings()]


# Failures to sign in.


def note_failure(store: Store, keys: Sequence[str], *, kept_s: float) -> None:
    """Note that somebody failed to sign in, under each of `keys`; those older than `kept_s` are forgotten."""
    with store.begin() as connection:
        at = connection.execute(select(now(connection))).scalar_one()
        connection.execute(
            delete(sign_in_failures).where(sign_in_failures.c.at < at - timedelta(seconds=kept_s))
        )
        connection.execute(insert(sign_in_failures), [{"key": it, "at": at} for it in keys])


def failures(store: Store, key: str, *, within_s: float) -> tuple[int, float]:
    """Return how many failures under a key there were lately, and how many seconds ago the newest was."""
    with store.read() as connection:
        at = now(connection)
        since = connection.execute(select(at)).scalar_one() - timedelta(seconds=within_s)
        query = select(func.count(), func.max(sign_in_failures.c.at, type_=UtcDateTime), at).where(
            sign_in_failures.c.key == key, sign_in_failures.c.at >= since
        )
        count, newest_at, read_at = connection.execute(query).one()
    return count, (read_at - newest_at).total_seconds() if newest_at else 0.0


def forget_failures(store: Store, key: str) -> None:
    """Forget the failures under a key: somebody has signed in."""
    with store.begin() as connection:
        connection.execute(delete(sign_in_failures).where(sign_in_failures.c.key == key))


def _session(row: RowMapping) -> Session:
    return Session(
        key=row["token_hash"][:_KEY_LENGTH],
        user_name=row["user_name"],
        address=row["address"],
        client=row["client"],
        created_at=row["created_at"],
        seen_at=row["seen_at"],
        expires_at=row["expires_at"],
    )
