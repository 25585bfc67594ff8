"""People on record: who may sign in, and as what. One admin who may sign in always stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, null, select, update

from agent.errors import NotFound, StateConflict
from agent.model.person import Role, User
from agent.store import audit
from agent.store.engine import Store
from agent.store.tables import insert_new, now
from agent.store.tables_console import sessions, users


def add(
    store: Store,
    name: str,
    role: Role,
    *,
    by: str,
    password_hash: str | None = None,
    issuer: str | None = None,
    subject: str | None = None,
) -> User:
    """Add somebody. Raises: StateConflict when the name is taken, or the subject is somebody else already."""
    with store.begin() as connection:
        at = now(connection)
        made = connection.execute(
            insert_new(connection, users).values(
                name=name,
                role=role,
                password_hash=password_hash,
                issuer=issuer,
                subject=subject,
                created_at=at,
                created_by=by,
                changed_at=at,
                changed_by=by,
            )
        )
        if made.rowcount == 0:
            raise StateConflict(f"there is a user {name!r} already, or one who signs in as the same person")
        _audit(connection, name, by, "add", {"role": role, "issuer": issuer})
        return read(connection, name)


def change_role(store: Store, name: str, role: Role, *, by: str) -> User:
    """Let somebody do more or less. Raises: NotFound; StateConflict for the last admin."""
    with store.begin() as connection:
        _check_admin_stays(connection, name, if_not=role is Role.ADMIN)
        return _change(connection, name, {"role": role}, by=by, action="role", detail={"role": role})


def change_password(store: Store, name: str, password_hash: str, *, by: str) -> User:
    """Give somebody another password; whoever is signed in as them no longer is. Raises: NotFound."""
    with store.begin() as connection:
        _end_sessions(connection, name)
        return _change(connection, name, {"password_hash": password_hash}, by=by, action="password")


def disable(store: Store, name: str, *, by: str) -> User:
    """Let somebody in no more, from this moment on. Raises: NotFound; StateConflict for the last admin."""
    with store.begin() as connection:
        _check_admin_stays(connection, name)
        _end_sessions(connection, name)
        return _change(connection, name, {"disabled_at": now(connection)}, by=by, action="disable")


def enable(store: Store, name: str, *, by: str) -> User:
    """Let somebody in again. Raises: NotFound."""
    with store.begin() as connection:
        return _change(connection, name, {"disabled_at": null()}, by=by, action="enable")


def remove(store: Store, name: str, *, by: str) -> None:
    """Remove somebody, with sessions and tokens; the audit keeps the name. Raises: NotFound; StateConflict."""
    with store.begin() as connection:
        _check_admin_stays(connection, name)
        connection.execute(delete(users).where(users.c.name == name))
        _audit(connection, name, by, "remove", {})


def get(store: Store, name: str) -> User:
    """Return somebody. Raises: NotFound."""
    with store.read() as connection:
        return read(connection, name)


def read(connection: Connection, name: str) -> User:
    """Do what `get` does, inside a transaction."""
    return _user(_row(connection, name))


def find_subject(store: Store, issuer: str, subject: str) -> User | None:
    """Return who signs in at an issuer as a subject."""
    query = select(users).where(users.c.issuer == issuer, users.c.subject == subject)
    with store.read() as connection:
        row = connection.execute(query).mappings().one_or_none()
    return _user(row) if row else None


def list_users(store: Store) -> list[User]:
    """Return everybody, by name."""
    with store.read() as connection:
        return [_user(row) for row in connection.execute(select(users).order_by(users.c.name)).mappings()]


def has_any(store: Store) -> bool:
    """Whether anybody may sign in at all."""
    with store.read() as connection:
        return connection.execute(select(users.c.name).limit(1)).first() is not None


def password_hash_of(store: Store, name: str) -> str | None:
    """Return the hash of the password of somebody who may sign in with one; `None` for everybody else."""
    query = select(users.c.password_hash).where(users.c.name == name, users.c.disabled_at.is_(None))
    with store.read() as connection:
        return connection.execute(query).scalar_one_or_none()


def renew_hash(store: Store, name: str, password_hash: str) -> None:
    """Keep the same password under newer parameters of the hash."""
    with store.begin() as connection:
        connection.execute(update(users).where(users.c.name == name).values(password_hash=password_hash))


def _row(connection: Connection, name: str, *, is_locked: bool = False) -> RowMapping:
    query = select(users).where(users.c.name == name)
    row = connection.execute(query.with_for_update() if is_locked else query).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no user {name!r}; build-agent users list names them")
    return row


def _change(
    connection: Connection,
    name: str,
    values: Mapping[str, Any],
    *,
    by: str,
    action: str,
    detail: Mapping[str, Any] | None = None,
) -> User:
    stamped = {**values, "changed_at": now(connection), "changed_by": by}
    if connection.execute(update(users).where(users.c.name == name).values(**stamped)).rowcount == 0:
        raise NotFound(f"no user {name!r}; build-agent users list names them")
    _audit(connection, name, by, action, detail or {})
    return read(connection, name)


def _check_admin_stays(connection: Connection, name: str, *, if_not: bool = False) -> None:
    """Raise StateConflict when nobody would be left who looks after people; two who leave at once wait for each other."""
    admins = (users.c.role == Role.ADMIN) & users.c.disabled_at.is_(None)
    held = connection.execute(select(users.c.name).where(admins).order_by(users.c.name).with_for_update())
    names = set(held.scalars())
    row = _row(connection, name, is_locked=True)
    if not if_not and names == {row["name"]}:
        raise StateConflict(f"{name} is the last admin who may sign in: make another one first")


def _end_sessions(connection: Connection, name: str) -> None:
    connection.execute(delete(sessions).where(sessions.c.user_name == name))


def _audit(connection: Connection, name: str, by: str, action: str, detail: Mapping[str, Any]) -> None:
    audit.write(
        connection, actor=by, action=f"user.{action}", subject_kind="user", subject_id=name, detail=detail
    )


def _user(row: RowMapping) -> User:
    return User(
        name=row["name"],
        role=Role(row["role"]),
        has_password=row["password_hash"] is not None,
        issuer=row["issuer"],
        subject=row["subject"],
        created_at=row["created_at"],
        created_by=row["created_by"],
        changed_at=row["changed_at"],
        changed_by=row["changed_by"],
        disabled_at=row["disabled_at"],
    )
