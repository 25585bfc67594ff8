"""API tokens: what programs sign in with. On record is a token's hash, never the token."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from agent.errors import NotFound, StateConflict
from agent.model.person import ApiToken, Role
from agent.store import audit, users
from agent.store.engine import Store
from agent.store.tables import now
from agent.store.tables_console import api_tokens
from agent.store.tables_console import users as users_table

_USED_EVERY = timedelta(seconds=60)


def create(
    store: Store,
    name: str,
    token_hash: str,
    *,
    user_name: str,
    scopes: Sequence[str],
    lasts_s: float | None,
    by: str,
) -> ApiToken:
    """Put a token on record. Raises: NotFound when there is no such user."""
    with store.begin() as connection:
        users.read(connection, user_name)
        at = connection.execute(select(now(connection))).scalar_one()
        token_id = uuid.uuid4().hex[:12]
        connection.execute(
            insert(api_tokens).values(
                id=token_id,
                name=name,
                user_name=user_name,
                token_hash=token_hash,
                scopes=list(scopes),
                created_at=at,
                created_by=by,
                expires_at=None if lasts_s is None else at + timedelta(seconds=lasts_s),
            )
        )
        detail = {"name": name, "user": user_name, "scopes": list(scopes)}
        _audit(connection, token_id, by, "create", detail)
        return _token(_row(connection, token_id))


def find(store: Store, token_hash: str) -> tuple[ApiToken, Role] | None:
    """Return a token that may be used now, and the role of whose it is; `None` when there is none."""
    with store.read() as connection:
        at = now(connection)
        query = (
            select(api_tokens, users_table.c.role, at.label("read_at"))
            .join(users_table, users_table.c.name == api_tokens.c.user_name)
            .where(api_tokens.c.token_hash == token_hash, api_tokens.c.revoked_at.is_(None))
            .where(users_table.c.disabled_at.is_(None))
            .where(api_tokens.c.expires_at.is_(None) | (api_tokens.c.expires_at > at))
        )
        row = connection.execute(query).mappings().one_or_none()
    if row is None:
        return None
    if row["used_at"] is None or row["read_at"] - row["used_at"] > _USED_EVERY:
        with store.begin() as connection:
            of_token = api_tokens.c.id == row["id"]
            connection.execute(update(api_tokens).where(of_token).values(used_at=row["read_at"]))
    return _token(row), Role(row["role"])


def revoke(store: Store, token_id: str, *, by: str, user_name: str | None = None) -> ApiToken:
    """Let a token open nothing any more, anybody's or one of `user_name` alone.

    Raises: NotFound; StateConflict when it was revoked before.
    """
    with store.begin() as connection:
        row = _row(connection, token_id)
        if user_name not in (None, row["user_name"]):
            raise NotFound(f"no token {token_id!r}")
        if row["revoked_at"] is not None:
            raise StateConflict(f"token {token_id} is revoked already")
        of_token = api_tokens.c.id == token_id
        connection.execute(update(api_tokens).where(of_token).values(revoked_at=now(connection)))
        _audit(connection, token_id, by, "revoke", {"name": row["name"], "user": row["user_name"]})
        return _token(_row(connection, token_id))


def list_tokens(store: Store, *, user_name: str | None = None) -> list[ApiToken]:
    """Return tokens, of one person or of all, the newest first."""
    query = select(api_tokens).order_by(api_tokens.c.created_at.desc(), api_tokens.c.id)
    if user_name is not None:
        query = query.where(api_tokens.c.user_name == user_name)
    with store.read() as connection:
        return [_token(row) for row in connection.execute(query).mappings()]


def _row(connection: Connection, token_id: str) -> RowMapping:
    query = select(api_tokens).where(api_tokens.c.id == token_id)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no token {token_id!r}; build-agent tokens list names them")
    return row


def _audit(connection: Connection, token_id: str, by: str, action: str, detail: Mapping[str, Any]) -> None:
    audit.write(
        connection,
        actor=by,
        action=f"token.{action}",
        subject_kind="token",
        subject_id=token_id,
        detail=detail,
    )


def _token(row: RowMapping) -> ApiToken:
    return ApiToken(
        id=row["id"],
        name=row["name"],
        user_name=row["user_name"],
        scopes=tuple(row["scopes"]),
        created_at=row["created_at"],
        created_by=row["created_by"],
        expires_at=row["expires_at"],
        used_at=row["used_at"],
        revoked_at=row["revoked_at"],
    )
