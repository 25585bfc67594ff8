"""The console: people and what they sign in with.

Written out in full and never by way of `agent.store.tables_console`: that module goes on, this revision stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from agent.store.migrations.form import document, instant, serial, text, unique_where

revision = "0005"
down_revision = "0004"
# It only adds (docs/decisions/0009).
compatible_from = "0002"


def upgrade() -> None:
    """Make the tables of the console."""
    _create_people()
    _create_tokens()


def _create_people() -> None:
    op.create_table(
        "users",
        text("name", is_needed=True),
        text("role", is_needed=True),
        text("password_hash"),
        text("issuer"),
        text("subject"),
        instant("created_at", is_needed=True),
        text("created_by", is_needed=True),
        instant("changed_at", is_needed=True),
        text("changed_by", is_needed=True),
        instant("disabled_at"),
        sa.PrimaryKeyConstraint("name", name="users_pkey"),
        sa.CheckConstraint("role IN ('viewer', 'operator', 'admin')", name=op.f("users_role_check")),
    )
    unique_where("users_subject_idx", "users", ["issuer", "subject"], "subject IS NOT NULL")
    op.create_table(
        "sign_in_failures",
        serial("id"),
        text("key", is_needed=True),
        instant("at", is_needed=True),
        sa.PrimaryKeyConstraint("id", name="sign_in_failures_pkey"),
    )
    op.create_index("sign_in_failures_key_idx", "sign_in_failures", ["key", "at"])
    op.create_index("sign_in_failures_at_idx", "sign_in_failures", ["at"])


def _create_tokens() -> None:
    op.create_table(
        "sessions",
        text("token_hash", is_needed=True),
        text("user_name", is_needed=True),
        text("address", is_needed=True),
        text("client", is_needed=True),
        instant("created_at", is_needed=True),
        instant("seen_at", is_needed=True),
        instant("expires_at", is_needed=True),
        sa.PrimaryKeyConstraint("token_hash", name="sessions_pkey"),
        sa.ForeignKeyConstraint(
            ["user_name"], ["users.name"], name="sessions_users_fkey", ondelete="CASCADE"
        ),
    )
    op.create_index("sessions_user_idx", "sessions", ["user_name"])
    op.create_index("sessions_expires_idx", "sessions", ["expires_at"])
    op.create_table(
        "api_tokens",
        text("id", is_needed=True),
        text("name", is_needed=True),
        text("user_name", is_needed=True),
        text("token_hash", is_needed=True),
        document("scopes"),
        instant("created_at", is_needed=True),
        text("created_by", is_needed=True),
        instant("expires_at"),
        instant("used_at"),
        instant("revoked_at"),
        sa.PrimaryKeyConstraint("id", name="api_tokens_pkey"),
        sa.ForeignKeyConstraint(
            ["user_name"], ["users.name"], name="api_tokens_users_fkey", ondelete="CASCADE"
        ),
    )
    op.create_index("api_tokens_hash_idx", "api_tokens", ["token_hash"], unique=True)
    op.create_index("api_tokens_user_idx", "api_tokens", ["user_name"])
