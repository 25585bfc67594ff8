"""The tables of the console: people and what they sign in with."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Table

from agent.store.tables import Text, UtcDateTime, document, metadata, only, serial

# `issuer` and `subject` name somebody who signs in elsewhere; `password_hash` somebody who does here.
users = Table(
    "users",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("password_hash", Text),
    Column("issuer", Text),
    Column("subject", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("changed_by", Text, nullable=False),
    Column("disabled_at", UtcDateTime),
    CheckConstraint("role IN ('viewer', 'operator', 'admin')", name="role"),
    Index("users_subject_idx", "issuer", "subject", unique=True, **only("subject IS NOT NULL")),
)

# What a browser holds is never on record, only its hash.
sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", Text, primary_key=True),
    Column("user_name", Text, ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
    Column("address", Text, nullable=False),
    Column("client", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Index("sessions_user_idx", "user_name"),
    Index("sessions_expires_idx", "expires_at"),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("user_name", Text, ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
    Column("token_hash", Text, nullable=False),
    Column("scopes", document, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("used_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Index("api_tokens_hash_idx", "token_hash", unique=True),
    Index("api_tokens_user_idx", "user_name"),
)

# One row a failure; `key` is a name or an address, as a hash.
sign_in_failures = Table(
    "sign_in_failures",
    metadata,
    Column("id", serial, primary_key=True),
    Column("key", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index("sign_in_failures_key_idx", "key", "at"),
    Index("sign_in_failures_at_idx", "at"),
)
