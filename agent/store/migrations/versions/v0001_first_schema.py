"""The first schema: servers, builds, attempts, steps, output, orders, audit, deploy locks.

Written out in full and never by way of `agent.store.tables`: that module goes on, this revision stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from agent import log

revision = "0001"
down_revision = None
compatible_from = "0001"

_log = log.get("store")


def upgrade() -> None:
    """Make every table, index and the view `output_lines`."""
    _create_servers()
    _create_builds()
    _create_attempts()
    _create_steps()
    _create_output()
    _create_records()
    if op.get_bind().dialect.name == "postgresql":
        _tune_postgresql()
        op.execute(_LINE_FUNCTION)
        op.execute(_LINES_POSTGRESQL)
    else:
        op.execute(_LINES_SQLITE)


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _text(name: str, *, is_needed: bool = False) -> sa.Column[str]:
    # Ordered by bytes, as SQLite orders: keys page alike on both, and a prefix is a range of the index.
    kind = sa.String(collation="C") if _is_postgresql() else sa.String()
    return sa.Column(name, kind, nullable=not is_needed)


def _instant(name: str, *, is_needed: bool = False) -> sa.Column[object]:
    kind = sa.DateTime(timezone=True) if _is_postgresql() else sa.String()
    return sa.Column(name, kind, nullable=not is_needed)


def _document(name: str) -> sa.Column[object]:
    return sa.Column(name, postgresql.JSONB() if _is_postgresql() else sa.JSON(), nullable=False)


def _number(name: str, *, is_big: bool = False, is_needed: bool = True) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger() if is_big else sa.Integer(), nullable=not is_needed)


def _ordered_document(name: str) -> sa.Column[object]:
    # JSONB forgets the order of keys, and that of pipelines and deploys matters.
    return sa.Column(name, sa.JSON(), nullable=False)


def _serial(table: str) -> tuple[sa.Column[int], sa.PrimaryKeyConstraint]:
    # SQLite numbers rows by itself only where the key is declared INTEGER.
    kind = sa.BigInteger() if _is_postgresql() else sa.Integer()
    return sa.Column("id", kind, autoincrement=True), sa.PrimaryKeyConstraint("id", name=f"{table}_pkey")


def _ended(table: str, states: str) -> tuple[sa.CheckConstraint, ...]:
    return (
        sa.CheckConstraint(f"state IN ({states})", name=op.f(f"{table}_state_check")),
        sa.CheckConstraint("(state = 'ended') = (outcome IS NOT NULL)", name=op.f(f"{table}_outcome_check")),
    )


def _of_attempt(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["build_id", "attempt"],
        ["attempts.build_id", "attempts.number"],
        name=f"{table}_attempts_fkey",
        ondelete="CASCADE",
    )


def _partial_index(name: str, table: str, column: str, condition: str, *, is_unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(name, table, [column], unique=is_unique, postgresql_where=where, sqlite_where=where)


def _create_servers() -> None:
    op.create_table(
        "servers",
        _text("id", is_needed=True),
        _text("name", is_needed=True),
        _text("session", is_needed=True),
        _text("state", is_needed=True),
        _text("state_reason"),
        _text("wanted", is_needed=True),
        _text("wanted_note"),
        _text("wanted_by"),
        _instant("drain_deadline_at"),
        _number("slots"),
        _document("queues"),
        _document("tags"),
        _text("image_id"),
        _text("image_version"),
        _text("agent_version", is_needed=True),
        _document("host"),
        _document("status"),
        _number("beat", is_big=True),
        _instant("beat_at", is_needed=True),
        _instant("registered_at", is_needed=True),
        sa.PrimaryKeyConstraint("id", name="servers_pkey"),
    )


def _create_builds() -> None:
    op.create_table(
        "builds",
        _text("id", is_needed=True),
        _text("project", is_needed=True),
        _text("queue", is_needed=True),
        _text("state", is_needed=True),
        _text("outcome"),
        _text("detail"),
        _ordered_document("definition"),
        _text("branch"),
        _text("commit"),
        _text("message"),
        _text("created_by", is_needed=True),
        _instant("created_at", is_needed=True),
        _instant("queued_at", is_needed=True),
        _instant("started_at"),
        _instant("ended_at"),
        _number("attempt"),
        _number("attempts_allowed"),
        _instant("cancel_requested_at"),
        _text("cancel_by"),
        sa.PrimaryKeyConstraint("id", name="builds_pkey"),
        *_ended("builds", "'queued', 'running', 'ended'"),
    )
    op.create_index("builds_state_queue_idx", "builds", ["state", "queue", "queued_at"])
    op.create_index("builds_created_idx", "builds", ["created_at", "id"])
    op.create_index("builds_project_idx", "builds", ["project", "created_at", "id"])


def _create_attempts() -> None:
    op.create_table(
        "attempts",
        _text("build_id", is_needed=True),
        _number("number"),
        _text("server_id", is_needed=True),
        _text("session", is_needed=True),
        _number("slot"),
        _text("state", is_needed=True),
        _text("outcome"),
        _text("detail"),
        _number("exit_code", is_needed=False),
        _instant("deploy_begun_at"),
        sa.Column("deploy_retry_safe", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        _instant("started_at", is_needed=True),
        _instant("ended_at"),
        sa.PrimaryKeyConstraint("build_id", "number", name="attempts_pkey"),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"], name="attempts_builds_fkey", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["server_id"], ["servers.id"], name="attempts_servers_fkey"),
        *_ended("attempts", "'running', 'ended'"),
    )
    # The last word on "never two live attempts", whatever the code does.
    _partial_index("attempts_one_running_idx", "attempts", "build_id", "state = 'running'", is_unique=True)
    _partial_index("attempts_running_idx", "attempts", "server_id", "state = 'running'")


def _create_steps() -> None:
    accounts = ("bytes_produced", "lines_produced", "bytes_stored", "lines_stored", "bytes_cut", "lines_cut")
    op.create_table(
        "steps",
        _text("build_id", is_needed=True),
        _number("attempt"),
        _number("step"),
        _text("pipeline", is_needed=True),
        _text("pipeline_class", is_needed=True),
        _text("name", is_needed=True),
        _text("command", is_needed=True),
        _text("state", is_needed=True),
        _text("outcome"),
        _text("detail"),
        _number("exit_code", is_needed=False),
        _instant("started_at", is_needed=True),
        _instant("ended_at"),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0"))
            for name in (*accounts, "masked_count")
        ),
        sa.PrimaryKeyConstraint("build_id", "attempt", "step", name="steps_pkey"),
        _of_attempt("steps"),
        *_ended("steps", "'running', 'ended'"),
    )


def _create_output() -> None:
    # No foreign key: a spool found after a crash may be shipped when its build is deleted, and each row would
    # pay.
    op.create_table(
        "output_chunks",
        _text("build_id", is_needed=True),
        _number("attempt"),
        _number("step"),
        _number("seq"),
        _number("first_line", is_big=True),
        _number("line_count"),
        _instant("at", is_needed=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("build_id", "attempt", "step", "seq", name="output_chunks_pkey"),
    )


def _create_records() -> None:
    op.create_table(
        "orders",
        *_serial("orders"),
        _text("server_id", is_needed=True),
        _text("kind", is_needed=True),
        _text("note"),
        _text("given_by", is_needed=True),
        _instant("created_at", is_needed=True),
        _instant("deadline_at"),
        _instant("taken_at"),
        _instant("done_at"),
        _text("result"),
        sa.ForeignKeyConstraint(
            ["server_id"], ["servers.id"], name="orders_servers_fkey", ondelete="CASCADE"
        ),
    )
    _partial_index("orders_open_idx", "orders", "server_id", "done_at IS NULL")
    op.create_table(
        "audit",
        *_serial("audit"),
        _instant("at", is_needed=True),
        _text("actor", is_needed=True),
        _text("action", is_needed=True),
        _text("subject_kind", is_needed=True),
        _text("subject_id", is_needed=True),
        _document("detail"),
    )
    op.create_index("audit_subject_idx", "audit", ["subject_kind", "subject_id", "id"])
    op.create_table(
        "deploy_locks",
        _text("project", is_needed=True),
        _text("environment", is_needed=True),
        _text("build_id", is_needed=True),
        _number("attempt"),
        _instant("taken_at", is_needed=True),
        sa.PrimaryKeyConstraint("project", "environment", name="deploy_locks_pkey"),
        _of_attempt("deploy_locks"),
    )
    op.create_index("deploy_locks_attempt_idx", "deploy_locks", ["build_id", "attempt"])


def _tune_postgresql() -> None:
    # Beats rewrite no indexed column: with room in the page each stays there (a HOT update), and no index
    # grows.
    op.execute("ALTER TABLE servers SET (fillfactor = 50)")
    try:
        # Four times as fast to write as the default, pglz, at much the same size. From PostgreSQL 14 on.
        with op.get_bind().begin_nested():
            op.execute("ALTER TABLE output_chunks ALTER COLUMN data SET COMPRESSION lz4")
    except DBAPIError as error:
        _log.warning("store.lz4_missing", "output is stored with the default compression: %s", error.orig)


# The lines of a step, for SQL by hand: chunks cut at line ends, and the pieces of a line that goes over
# several chunks joined. A line ends after some 4 MiB (as escaped, on PostgreSQL): one without end, such as 1
# GiB of a binary, would break the limit of a value. What lies behind a last line end is a line only if it
# holds something.

# Text of bytes: as they are where they are UTF-8, else (NUL included) with the odd ones as \ooo.
_LINE_FUNCTION = """
CREATE FUNCTION output_line_text(escaped text) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    -- encode(..., 'escape') leaves plain ASCII as it is, which most lines are.
    IF position('\\' IN escaped) = 0 THEN
        RETURN escaped;
    END IF;
    -- A block of its own: one with EXCEPTION costs a subtransaction.
    BEGIN
        RETURN convert_from(decode(escaped, 'escape'), 'UTF8');
    EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
        RETURN escaped;
    END;
END
$$
"""

_LINES_POSTGRESQL = """
CREATE VIEW output_lines AS
SELECT build_id, attempt, step, line_no, min(at) AS at,
       output_line_text(string_agg(piece, '' ORDER BY seq)) AS text
FROM (
    SELECT c.build_id, c.attempt, c.step, c.seq, c.at, p.piece,
           c.first_line + p.ordinality - 1 AS line_no,
           p.ordinality <= c.line_count AS is_ended,
           sum(length(p.piece)) OVER (
               PARTITION BY c.build_id, c.attempt, c.step, c.first_line + p.ordinality - 1 ORDER BY c.seq
           ) AS size_so_far
    FROM output_chunks AS c
    CROSS JOIN LATERAL unnest(string_to_array(encode(c.data, 'escape'), E'\\n'))
        WITH ORDINALITY AS p (piece, ordinality)
) AS pieces
WHERE size_so_far <= 4 << 20
GROUP BY build_id, attempt, step, line_no
HAVING bool_or(is_ended) OR sum(length(piece)) > 0
"""

# SQLite splits by recursion only and pushes no condition down into that, nor through windows or sorted
# aggregates. So a subquery a chunk lists where its pieces lie (offset * 2^17 + length), json_each makes rows
# of the list, and another subquery follows a line into the next chunks: conditions on the view reach the
# table. Bytes that are not UTF-8 go out as they are.
_LINES_SQLITE = """
CREATE VIEW output_lines AS
SELECT c.build_id, c.attempt, c.step, c.first_line + p.key AS line_no, c.at,
       (
           WITH RECURSIVE line (seq, text, is_ended) AS (
               SELECT c.seq, CAST(substr(c.data, (p.value >> 17) + 1, p.value & 131071) AS TEXT),
                      p.key < c.line_count
               UNION ALL
               SELECT n.seq,
                      line.text || CAST(CASE n.line_count WHEN 0 THEN n.data
                                        ELSE substr(n.data, 1, instr(n.data, x'0a') - 1) END AS TEXT),
                      n.line_count > 0
               FROM line
               JOIN output_chunks AS n ON n.build_id = c.build_id AND n.attempt = c.attempt
                                      AND n.step = c.step AND n.seq = line.seq + 1
               WHERE NOT line.is_ended AND length(CAST(line.text AS BLOB)) < 4 << 20
           )
           SELECT text FROM line ORDER BY seq DESC LIMIT 1
       ) AS text
FROM output_chunks AS c
JOIN json_each((
    WITH RECURSIVE piece (start, size) AS (
        SELECT 0,
               CASE instr(c.data, x'0a') WHEN 0 THEN length(c.data) ELSE instr(c.data, x'0a') - 1 END
        UNION ALL
        SELECT start + size + 1,
               CASE instr(substr(c.data, start + size + 2), x'0a')
                   WHEN 0 THEN length(c.data) - start - size - 1
                   ELSE instr(substr(c.data, start + size + 2), x'0a') - 1 END
        FROM piece WHERE start + size < length(c.data)
    )
    SELECT json_group_array((start << 17) | size) FROM piece
)) AS p
WHERE (p.key < c.line_count OR p.value & 131071 > 0)
  AND (p.key > 0 OR NOT EXISTS (
          SELECT 1 FROM output_chunks AS b
          WHERE b.build_id = c.build_id AND b.attempt = c.attempt AND b.step = c.step AND b.seq = c.seq - 1
            AND substr(b.data, -1) <> x'0a'
      ))
"""
