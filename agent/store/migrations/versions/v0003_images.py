"""Images: the catalogue, what the checks said of each image, and the bakes that make them.

Written out in full and never by way of `agent.store.tables`: that module goes on, this revision stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from agent.store.migrations.form import document, instant, text, unique_where

revision = "0003"
down_revision = "0002"
# It only adds (docs/decisions/0009).
compatible_from = "0002"


def upgrade() -> None:
    """Make the tables `images`, `image_reports` and `bakes`."""
    _create_images()
    _create_reports()
    _create_bakes()


def _of_image(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["image_id"], ["images.id"], name=f"{table}_images_fkey", ondelete="CASCADE"
    )


def _create_images() -> None:
    op.create_table(
        "images",
        text("id", is_needed=True),
        text("version", is_needed=True),
        text("provider", is_needed=True),
        text("provider_image_id"),
        text("profile", is_needed=True),
        text("base", is_needed=True),
        text("state", is_needed=True),
        text("reason"),
        document("provenance"),
        instant("created_at", is_needed=True),
        text("created_by", is_needed=True),
        instant("verified_at"),
        instant("changed_at", is_needed=True),
        text("changed_by", is_needed=True),
        sa.PrimaryKeyConstraint("id", name="images_pkey"),
        sa.CheckConstraint(
            "state IN ('baking', 'verified', 'failed', 'current', 'previous', 'retired', 'bad')",
            name=op.f("images_state_check"),
        ),
    )
    # A version may be tried again when its bake has failed.
    unique_where("images_version_idx", "images", ["provider", "profile", "version"], "state <> 'failed'")
    op.create_index("images_created_idx", "images", ["created_at", "id"])


def _create_reports() -> None:
    op.create_table(
        "image_reports",
        text("image_id", is_needed=True),
        text("ran", is_needed=True),
        text("junit", is_needed=True),
        document("report"),
        instant("stored_at", is_needed=True),
        sa.PrimaryKeyConstraint("image_id", "ran", name="image_reports_pkey"),
        _of_image("image_reports"),
        sa.CheckConstraint("ran IN ('bake', 'fresh_boot')", name=op.f("image_reports_ran_check")),
    )


def _create_bakes() -> None:
    op.create_table(
        "bakes",
        text("id", is_needed=True),
        text("image_id", is_needed=True),
        text("provider", is_needed=True),
        text("phase", is_needed=True),
        text("state", is_needed=True),
        document("options"),
        document("made"),
        text("error"),
        text("server_id"),
        text("session"),
        text("owner_name"),
        document("owner_process"),
        instant("created_at", is_needed=True),
        text("created_by", is_needed=True),
        instant("changed_at", is_needed=True),
        instant("ended_at"),
        sa.PrimaryKeyConstraint("id", name="bakes_pkey"),
        _of_image("bakes"),
        sa.CheckConstraint(
            "state IN ('running', 'interrupted', 'passed', 'failed')", name=op.f("bakes_state_check")
        ),
    )
    op.create_index("bakes_image_idx", "bakes", ["image_id"])
