"""Orders: what operators say to servers: who, when and why. The newest is also the server's `wanted`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, RowMapping, bindparam, exists, insert, select, update

from agent.errors import NotFound
from agent.model.server import Order, OrderKind, ServerState
from agent.store import audit
from agent.store.engine import Store
from agent.store.tables import attempts, now, orders, servers

_OPEN = (
    select(orders)
    .where(orders.c.server_id == bindparam("of_server"), orders.c.done_at.is_(None))
    .order_by(orders.c.id)
)

_EXPIRED = select(servers.c.id).where(servers.c.wanted == OrderKind.QUARANTINE)


def give(
    store: Store,
    *,
    server_id: str,
    kind: OrderKind,
    by: str,
    note: str | None = None,
    deadline_at: datetime | None = None,
) -> Order:
    """Record an order; the server finds it with its next beat at the latest.

    Raises: NotFound.
    """
    with store.begin() as connection:
        return give_in(connection, server_id=server_id, kind=kind, by=by, note=note, deadline_at=deadline_at)


def give_in(
    connection: Connection,
    *,
    server_id: str,
    kind: OrderKind,
    by: str,
    note: str | None = None,
    deadline_at: datetime | None = None,
) -> Order:
    """Do what `give` does, inside a transaction."""
    # The server's row first: a registration at the same time sees the order as a whole or not at all. No slot
    # claims a build between this and the end of the order: claims hold the row, too, and want `resume`.
    known = connection.execute(
        update(servers)
        .where(servers.c.id == server_id)
        .values(wanted=kind, wanted_note=note, wanted_by=by, drain_deadline_at=deadline_at)
    )
    if known.rowcount == 0:
        raise NotFound(f"no server {server_id!r}")
    row = connection.execute(
        insert(orders)
        .values(
            server_id=server_id,
            kind=kind,
            note=note,
            given_by=by,
            created_at=now(connection),
            deadline_at=deadline_at,
        )
        .returning(orders)
    )
    order = _order(row.mappings().one())
    audit.write(
        connection,
        actor=by,
        action=f"server.{kind}",
        subject_kind="server",
        subject_id=server_id,
        detail={
            "order": order.id,
            "note": note,
            "deadline_at": deadline_at.isoformat() if deadline_at else None,
        },
    )
    return order


def instant(connection: Connection) -> datetime:
    """Return the instant of a transaction, for a deadline that the database's clock is to tell."""
    at: datetime = connection.execute(select(now(connection))).scalar_one()
    return at


def leave_idle(connection: Connection, server_id: str, *, by: str, note: str) -> Order | None:
    """Have a server leave that accepts builds and has none: proved and ordered in one, under the server's row.

    A claim holds that row until its attempt is on record: one that came before is seen here, one that comes after finds
    the order. Returns: None, and nothing has changed, when the server has a build or anything but `accepting` to say.
    """
    connection.execute(select(servers.c.id).where(servers.c.id == server_id).with_for_update())
    # A second statement: on PostgreSQL it sees what was committed while the first waited for the row.
    is_idle = connection.execute(
        select(servers.c.id).where(
            servers.c.id == server_id,
            servers.c.state == ServerState.ACCEPTING,
            servers.c.wanted == OrderKind.RESUME,
            ~exists().where(attempts.c.server_id == server_id, attempts.c.state == "running"),
        )
    ).first()
    if is_idle is None:
        return None
    return give_in(connection, server_id=server_id, kind=OrderKind.TERMINATE, by=by, note=note)


def has_expired(connection: Connection) -> bool:
    """Whether a quarantine's time is over."""
    query = _EXPIRED.where(servers.c.drain_deadline_at <= now(connection))
    return connection.execute(query.limit(1)).first() is not None


def resume_expired(store: Store) -> list[str]:
    """End the quarantines whose time is over; return the servers."""
    with store.begin() as connection:
        query = _EXPIRED.where(servers.c.drain_deadline_at <= now(connection))
        ended = connection.execute(query.with_for_update(skip_locked=True)).scalars()
        found = list(ended)
        for server_id in found:
            give_in(
                connection,
                server_id=server_id,
                kind=OrderKind.RESUME,
                by="build-agent",
                note="the quarantine's time is over",
            )
    return found


def take(store: Store, order_id: int) -> None:
    """Record that the server has the order and acts on it; the first time counts. Raises: NotFound."""
    _mark(store, order_id, "taken_at")


def done(store: Store, order_id: int, result: str) -> None:
    """Record how an order ended; what was recorded first stays. Raises: NotFound."""
    _mark(store, order_id, "done_at", result=result)


def read_open(connection: Connection, server_id: str) -> list[Order]:
    """Return the orders of a server that are not done, oldest first; for a heartbeat's transaction."""
    return [_order(row) for row in connection.execute(_OPEN, {"of_server": server_id}).mappings()]


def begin_anew(connection: Connection, server_id: str) -> bool:
    """Settle the orders of a server's former life: those it had taken went with it, those it never saw stand.

    Returns: whether an order stands that no life of the server has seen yet.
    """
    connection.execute(
        update(orders)
        .where(orders.c.server_id == server_id, orders.c.taken_at.is_not(None), orders.c.done_at.is_(None))
        .values(done_at=now(connection), result="the agent has started anew")
    )
    query = select(orders.c.id).where(orders.c.server_id == server_id, orders.c.done_at.is_(None)).limit(1)
    return connection.execute(query).first() is not None


def _mark(store: Store, order_id: int, column: str, **values: str) -> None:
    with store.begin() as connection:
        marked = connection.execute(
            update(orders)
            .where(orders.c.id == order_id, orders.c[column].is_(None))
            .values({column: now(connection), **values})
        )
        if marked.rowcount == 0:
            known = connection.execute(select(orders.c.id).where(orders.c.id == order_id)).first()
            if known is None:
                raise NotFound(f"no order {order_id}")


def _order(row: RowMapping) -> Order:
    values = dict(row)
    by = values.pop("given_by")
    return Order(**values | {"kind": OrderKind(values["kind"]), "by": by})
