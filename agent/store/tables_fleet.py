"""The tables of the fleet: pools, machines, decisions, roll-outs, events, hours, deployments, and who leads."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
)

from agent.store.tables import Text, UtcDateTime, document, metadata, only, serial

# One row: which fleet this database is, and which controller leads it.
fleet_lead = Table(
    "fleet_lead",
    metadata,
    Column("fleet_id", Text, primary_key=True),
    Column("holder", Text),
    Column("holder_name", Text),
    Column("beat", BigInteger, nullable=False),
    Column("lease_s", Float, nullable=False),
    Column("beat_at", UtcDateTime),
    Column("status", document, nullable=False),
)

pools = Table(
    "pools",
    metadata,
    Column("name", Text, primary_key=True),
    Column("provider", Text, nullable=False),
    Column("queues", document, nullable=False),
    Column("image_id", Text, ForeignKey("images.id")),
    Column("previous_image_id", Text, ForeignKey("images.id", name="pools_images_previous_fkey")),
    Column("policy", document, nullable=False),
    Column("paused_why", Text),
    Column("paused_by", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("changed_by", Text, nullable=False),
)

# No foreign keys to servers and images: what was there is told when they are deleted.
machines = Table(
    "machines",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pool", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("provider_machine_id", Text),
    Column("image_id", Text),
    Column("state", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("reason", Text),
    Column("fault", Text),
    Column("rollout_id", Text),
    Column("server_id", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("deadline_at", UtcDateTime),
    Column("served_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("accounted_at", UtcDateTime, nullable=False),
    CheckConstraint(
        "state IN ('wanted', 'booting', 'serving', 'leaving', 'terminating', 'gone')", name="state"
    ),
    Index("machines_name_idx", "name", unique=True, **only("state <> 'gone'")),
    Index("machines_pool_idx", "pool", "created_at", "id"),
    Index("machines_server_idx", "server_id"),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", serial, primary_key=True, autoincrement=True),
    Column("pool", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("rule", Integer, nullable=False),
    Column("inputs", document, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("start", Integer, nullable=False),
    Column("drain", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Index("decisions_pool_idx", "pool", "id"),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pool", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("from_image_id", Text),
    Column("to_image_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("is_paused", Boolean, nullable=False),
    Column("is_hastened", Boolean, nullable=False),
    Column("evidence", document, nullable=False),
    Column("reason", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    CheckConstraint(
        "state IN ('canary', 'rolling', 'going_back', 'done', 'rolled_back', 'aborted')", name="state"
    ),
    # One at a time in a pool, whoever begins it.
    Index("rollouts_open_idx", "pool", unique=True, **only("ended_at IS NULL")),
    Index("rollouts_pool_idx", "pool", "created_at", "id"),
)

fleet_events = Table(
    "fleet_events",
    metadata,
    Column("id", serial, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("subject_kind", Text, nullable=False),
    Column("subject_id", Text, nullable=False),
    Column("pool", Text),
    Column("text", Text, nullable=False),
    Index("fleet_events_subject_idx", "subject_kind", "subject_id", "id"),
)

server_hours = Table(
    "server_hours",
    metadata,
    Column("hour", UtcDateTime, nullable=False),
    Column("pool", Text, nullable=False),
    Column("image_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("idle_seconds", Float, nullable=False),
    PrimaryKeyConstraint("hour", "pool", "image_id", "state"),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pool", Text, nullable=False),
    Column("repository", Text, nullable=False),
    Column("commit", Text, nullable=False),
    Column("branch", Text),
    Column("state", Text, nullable=False),
    Column("image_id", Text),
    Column("detail", Text),
    Column("delivery_id", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    CheckConstraint("state IN ('running', 'passed', 'failed', 'cancelled')", name="state"),
    # A delivery counts once, whoever sends it again.
    Index("deployments_delivery_idx", "delivery_id", unique=True, **only("delivery_id IS NOT NULL")),
    Index("deployments_created_idx", "created_at", "id"),
)

deployment_stages = Table(
    "deployment_stages",
    metadata,
    Column("deployment_id", Text, ForeignKey("deployments.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("output_id", Text),
    Column("detail", Text),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    PrimaryKeyConstraint("deployment_id", "number"),
    CheckConstraint("state IN ('waiting', 'running', 'passed', 'failed')", name="state"),
)
