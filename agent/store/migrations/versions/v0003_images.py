"""Images: the catalogue, what the checks said of each image, and the bakes that make them.

Written out in full and never by way of `agent.store.tables`: that module goes on, this revision stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
# It only adds (docs/decisions/0009).
compatible_from = "0002"


def upgrade() -> None:
    """Make the tables `images`, `image_reports` and `bakes`."""
    _create_images()
    _create_reports()
    _create_bakes()


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


def _partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=True, postgresql_where=where, sqlite_where=where)


def _of_image(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["image_id"], ["images.id"], name=f"{table}_images_fkey", ondelete="CASCADE"
    )


def _create_images() -> None:
    op.create_table(
        "images",
        _text("id", is_needed=True),
        _text("version", is_needed=True),
        _text("provider", is_needed=True),
        _text("provider_image_id"),
        _text("profile", is_needed=True),
        _text("base", is_needed=True),
        _text("state", is_needed=True),
        _text("reason"),
        _document("provenance"),
        _instant("created_at", is_needed=True),
        _text("created_by", is_needed=True),
        _instant("verified_at"),
        _instant("changed_at", is_needed=True),
        _text("changed_by", is_needed=True),
        sa.PrimaryKeyConstraint("id", name="images_pkey"),
        sa.CheckConstraint(
            "state IN ('baking', 'verified', 'failed', 'current', 'previous', 'retired', 'bad')",
            name=op.f("images_state_check"),
        ),
    )
    # A version may be tried again when its bake has failed.
    _partial_index("images_version_idx", "images", ["provider", "profile", "version"], "state <> 'failed'")
    op.create_index("images_created_idx", "images", ["created_at", "id"])


def _create_reports() -> None:
    op.create_table(
        "image_reports",
        _text("image_id", is_needed=True),
        _text("ran", is_needed=True),
        _text("junit", is_needed=True),
        _document("report"),
        _instant("stored_at", is_needed=True),
        sa.PrimaryKeyConstraint("image_id", "ran", name="image_reports_pkey"),
        _of_image("image_reports"),
        sa.CheckConstraint("ran IN ('bake', 'fresh_boot')", name=op.f("image_reports_ran_check")),
    )


def _create_bakes() -> None:
    op.create_table(
        "bakes",
        _text("id", is_needed=True),
        _text("image_id", is_needed=True),
        _text("provider", is_needed=True),
        _text("phase", is_needed=True),
        _text("state", is_needed=True),
        _document("options"),
        _document("made"),
        _text("error"),
        _text("server_id"),
        _text("session"),
        _text("owner_name"),
        _document("owner_process"),
        _instant("created_at", is_needed=True),
        _text("created_by", is_needed=True),
        _instant("changed_at", is_needed=True),
        _instant("ended_at"),
        sa.PrimaryKeyConstraint("id", name="bakes_pkey"),
        _of_image("bakes"),
        sa.CheckConstraint(
            "state IN ('running', 'interrupted', 'passed', 'failed')", name=op.f("bakes_state_check")
        ),
    )
    op.create_index("bakes_image_idx", "bakes", ["image_id"])
