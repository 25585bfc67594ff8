"""Every table as this version knows it, and the column types that make both databases answer alike.

Tables are made by the migrations alone; a test holds the two equal. Knows no query.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    bindparam,
    func,
    literal,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine

from agent import clock


def printable(value: str) -> str:
    """Show NUL as the sign for it, and a lone surrogate by its number: PostgreSQL's text holds neither."""
    return value.replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "backslashreplace").decode()


class UtcDateTime(TypeDecorator[datetime]):
    """An instant: aware in, aware and UTC out. SQLite keeps ISO 8601 text of one width, so it sorts."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return `timestamptz` or text."""
        return dialect.type_descriptor(String() if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Refuse what has no zone: it would be read in the server's."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        value = value.astimezone(UTC)
        return value.isoformat(timespec="microseconds") if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return the instant in UTC, whatever zone the session is in."""
        if value is None:
            return None
        return (datetime.fromisoformat(value) if isinstance(value, str) else value).astimezone(UTC)


class Text(TypeDecorator[str]):
    """Text from anywhere: what PostgreSQL can't hold (NUL, lone surrogates) is replaced on the way in.

    Names, messages and reasons come from repositories, jobs and programs; none may make a record fail. The
    migrations give such columns the collation "C": the order is by bytes on both databases, so keys page the
    same and a prefix is a range of the index.
    """

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Make the text one that both databases hold."""
        return None if value is None else printable(value)


document = JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
# JSONB forgets the order of keys; pipelines are numbered and deploys run in the order of the definition.
_ordered_json = JSON(none_as_null=True)
# SQLite numbers rows by itself only where the key is declared INTEGER.
serial = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(referred_table_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)


def only(condition: str) -> dict[str, Any]:
    """Return what makes an index one of the rows that meet a condition."""
    return {"postgresql_where": text(condition), "sqlite_where": text(condition)}


# One row: the oldest schema that an agent may have been written for to work with this one.
schema_compatibility = Table(
    "schema_compatibility", metadata, Column("compatible_from", Text, primary_key=True)
)

servers = Table(
    "servers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("session", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("state_reason", Text),
    Column("wanted", Text, nullable=False),
    Column("wanted_note", Text),
    Column("wanted_by", Text),
    Column("drain_deadline_at", UtcDateTime),
    Column("slots", Integer, nullable=False),
    Column("queues", document, nullable=False),
    Column("tags", document, nullable=False),
    Column("image_id", Text),
    Column("image_version", Text),
    Column("agent_version", Text, nullable=False),
    Column("host", document, nullable=False),
    Column("status", document, nullable=False),
    Column("beat", BigInteger, nullable=False),
    Column("beat_at", UtcDateTime, nullable=False),
    Column("registered_at", UtcDateTime, nullable=False),
    Column("lease_s", Float),
    # Beats rewrite no indexed column: with room in the page each stays there (a HOT update), and no index
    # grows.
    postgresql_with={"fillfactor": 50},
)

builds = Table(
    "builds",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("outcome", Text),
    Column("detail", Text),
    Column("definition", _ordered_json, nullable=False),
    Column("branch", Text),
    Column("commit", Text),
    Column("message", Text),
    Column("created_by", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("queued_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("attempt", Integer, nullable=False),
    Column("attempts_allowed", Integer, nullable=False),
    Column("cancel_requested_at", UtcDateTime),
    Column("cancel_by", Text),
    CheckConstraint("state IN ('queued', 'running', 'ended')", name="state"),
    CheckConstraint("(state = 'ended') = (outcome IS NOT NULL)", name="outcome"),
    Index("builds_state_queue_idx", "state", "queue", "queued_at"),
    Index("builds_created_idx", "created_at", "id"),
    Index("builds_project_idx", "project", "created_at", "id"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("build_id", Text, ForeignKey("builds.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("server_id", Text, ForeignKey("servers.id"), nullable=False),
    Column("session", Text, nullable=False),
    Column("slot", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("outcome", Text),
    Column("detail", Text),
    Column("exit_code", Integer),
    Column("deploy_begun_at", UtcDateTime),
    Column("deploy_retry_safe", Boolean, nullable=False, server_default=text("false")),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    PrimaryKeyConstraint("build_id", "number"),
    CheckConstraint("state IN ('running', 'ended')", name="state"),
    CheckConstraint("(state = 'ended') = (outcome IS NOT NULL)", name="outcome"),
    # The last word on "never two live attempts", whatever the code above it does.
    Index(
        "attempts_one_running_idx",
        "build_id",
        unique=True,
        **only("state = 'running'"),
    ),
    Index("attempts_running_idx", "server_id", **only("state = 'running'")),
)

steps = Table(
    "steps",
    metadata,
    Column("build_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("pipeline", Text, nullable=False),
    Column("pipeline_class", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("command", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("outcome", Text),
    Column("detail", Text),
    Column("exit_code", Integer),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in (
            "bytes_produced",
            "lines_produced",
            "bytes_stored",
            "lines_stored",
            "bytes_cut",
            "lines_cut",
            "masked_count",
        )
    ),
    PrimaryKeyConstraint("build_id", "attempt", "step"),
    ForeignKeyConstraint(
        ["build_id", "attempt"], ["attempts.build_id", "attempts.number"], ondelete="CASCADE"
    ),
    CheckConstraint("state IN ('running', 'ended')", name="state"),
    CheckConstraint("(state = 'ended') = (outcome IS NOT NULL)", name="outcome"),
)

# No foreign key: a spool found after a crash may be shipped when its build is deleted, and each row would
# pay.
output_chunks = Table(
    "output_chunks",
    metadata,
    Column("build_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("first_line", BigInteger, nullable=False),
    Column("line_count", Integer, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("data", LargeBinary, nullable=False),
    PrimaryKeyConstraint("build_id", "attempt", "step", "seq"),
)

orders = Table(
    "orders",
    metadata,
    Column("id", serial, primary_key=True, autoincrement=True),
    Column("server_id", Text, ForeignKey("servers.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("note", Text),
    Column("given_by", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("deadline_at", UtcDateTime),
    Column("taken_at", UtcDateTime),
    Column("done_at", UtcDateTime),
    Column("result", Text),
    Index("orders_open_idx", "server_id", **only("done_at IS NULL")),
)

# No foreign keys: what was done stays on the record when its subject is deleted.
audit = Table(
    "audit",
    metadata,
    Column("id", serial, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject_kind", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("detail", document, nullable=False),
    Index("audit_subject_idx", "subject_kind", "subject_id", "id"),
)

deploy_locks = Table(
    "deploy_locks",
    metadata,
    Column("project", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("build_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("taken_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("project", "environment"),
    ForeignKeyConstraint(
        ["build_id", "attempt"], ["attempts.build_id", "attempts.number"], ondelete="CASCADE"
    ),
    Index("deploy_locks_attempt_idx", "build_id", "attempt"),
)


images = Table(
    "images",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("provider_image_id", Text),
    Column("profile", Text, nullable=False),
    Column("base", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("provenance", document, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("verified_at", UtcDateTime),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("changed_by", Text, nullable=False),
    CheckConstraint(
        "state IN ('baking', 'verified', 'failed', 'current', 'previous', 'retired', 'bad')", name="state"
    ),
    # A version may be tried again when its bake has failed.
    Index(
        "images_version_idx",
        "provider",
        "profile",
        "version",
        unique=True,
        **only("state <> 'failed'"),
    ),
    Index("images_created_idx", "created_at", "id"),
)

image_reports = Table(
    "image_reports",
    metadata,
    Column("image_id", Text, ForeignKey("images.id", ondelete="CASCADE"), nullable=False),
    Column("ran", Text, nullable=False),
    Column("junit", Text, nullable=False),
    Column("report", document, nullable=False),
    Column("stored_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("image_id", "ran"),
    CheckConstraint("ran IN ('bake', 'fresh_boot')", name="ran"),
)

# No foreign keys to builds and servers: a bake's log may be deleted while what it made is still to be swept.
bakes = Table(
    "bakes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("image_id", Text, ForeignKey("images.id", ondelete="CASCADE"), nullable=False),
    Column("provider", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("options", document, nullable=False),
    Column("made", document, nullable=False),
    Column("error", Text),
    Column("server_id", Text),
    Column("session", Text),
    Column("owner_name", Text),
    Column("owner_process", document, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    CheckConstraint("state IN ('running', 'interrupted', 'passed', 'failed')", name="state"),
    Index("bakes_image_idx", "image_id"),
)


def now(connection: Connection) -> ColumnElement[datetime]:
    """Return the one instant of this transaction: the server's, so that no machine's clock orders records."""
    if connection.dialect.name == "postgresql":
        return func.now(type_=UtcDateTime)
    return literal(clock.utc_now(), UtcDateTime)


def now_of(dialect: str) -> ColumnElement[datetime]:
    """Return the same for a statement that is put together once: on SQLite our clock is read when it runs."""
    if dialect == "postgresql":
        return func.now(type_=UtcDateTime)
    return bindparam(None, callable_=clock.utc_now, type_=UtcDateTime, unique=True)


def insert_new(connection: Connection, table: Table) -> Insert:
    """Return an INSERT that passes over rows whose key is there; `rowcount` tells how many were not."""
    return insert_new_of(connection.dialect.name, table)


@functools.cache
def insert_new_of(dialect: str, table: Table) -> Insert:
    """Return the same by the dialect's name, for a statement that is put together once."""
    # Without the option SQLAlchemy gives -1 for an INSERT.
    if dialect == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    from sqlalchemy.dialects import sqlite  # only here: it brings sqlite3

    return sqlite.insert(table).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
