"""Orders: what operators say to servers: who, when and why. The newest is also the server's `wanted`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, RowMapping, bindparam, insert, select, update

from agent.errors import NotFound
from agent.model.server import Order, OrderKind
from agent.store import audit
from agent.store.engine import Store
from agent.store.tables import now, orders, servers

_OPEN = (
    select(orders)
    .where(orders.c.server_id == bindparam("of_server"), orders.c.done_at.is_(None))
    .order_by(orders.c.id)
)


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
        # The server's row first: a registration at the same time sees the order as a whole or not at all.
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
