"""The fleet: pools, machines, decisions, roll-outs, events, hours, deployments, and who leads it.

Written out in full and never by way of `agent.store.tables_fleet`: that module goes on, this revision stays.
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

from agent.store.migrations.form import (
    document,
    flag,
    instant,
    number,
    real,
    serial,
    text,
    unique_where,
)

revision = "0004"
down_revision = "0003"
# It only adds (docs/decisions/0009).
compatible_from = "0002"


def upgrade() -> None:
    """Make the tables of the fleet, and give it its id."""
    _create_lead()
    _create_pools()
    _create_machines()
    _create_decisions()
    _create_rollouts()
    _create_events()
    _create_deployments()


def _create_lead() -> None:
    table = op.create_table(
        "fleet_lead",
        text("fleet_id", is_needed=True),
        text("holder"),
        text("holder_name"),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        real("lease_s"),
        instant("beat_at"),
        document("status"),
        sa.PrimaryKeyConstraint("fleet_id", name="fleet_lead_pkey"),
    )
    # Machines carry it as a tag: those of another database are never taken for this one's.
    op.bulk_insert(table, [{"fleet_id": uuid.uuid4().hex, "beat": 0, "lease_s": 30.0, "status": {}}])


def _create_pools() -> None:
    op.create_table(
        "pools",
        text("name", is_needed=True),
        text("provider", is_needed=True),
        document("queues"),
        text("image_id"),
        text("previous_image_id"),
        document("policy"),
        text("paused_why"),
        text("paused_by"),
        instant("created_at", is_needed=True),
        text("created_by", is_needed=True),
        instant("changed_at", is_needed=True),
        text("changed_by", is_needed=True),
        sa.PrimaryKeyConstraint("name", name="pools_pkey"),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="pools_images_fkey"),
        sa.ForeignKeyConstraint(["previous_image_id"], ["images.id"], name="pools_images_previous_fkey"),
    )


def _create_machines() -> None:
    op.create_table(
        "machines",
        text("id", is_needed=True),
        text("pool", is_needed=True),
        text("provider", is_needed=True),
        text("name", is_needed=True),
        text("provider_machine_id"),
        text("image_id"),
        text("state", is_needed=True),
        text("purpose", is_needed=True),
        text("reason"),
        text("fault"),
        text("rollout_id"),
        text("server_id"),
        instant("created_at", is_needed=True),
        text("created_by", is_needed=True),
        instant("changed_at", is_needed=True),
        instant("deadline_at"),
        instant("served_at"),
        instant("ended_at"),
        instant("accounted_at", is_needed=True),
        sa.PrimaryKeyConstraint("id", name="machines_pkey"),
        sa.CheckConstraint(
            "state IN ('wanted', 'booting', 'serving', 'leaving', 'terminating', 'gone')",
            name=op.f("machines_state_check"),
        ),
    )
    unique_where("machines_name_idx", "machines", ["name"], "state <> 'gone'")
    op.create_index("machines_pool_idx", "machines", ["pool", "created_at", "id"])
    op.create_index("machines_server_idx", "machines", ["server_id"])


def _create_decisions() -> None:
    op.create_table(
        "decisions",
        serial("id"),
        text("pool", is_needed=True),
        instant("at", is_needed=True),
        number("rule"),
        document("inputs"),
        number("wanted"),
        number("start"),
        number("drain"),
        text("reason", is_needed=True),
        sa.PrimaryKeyConstraint("id", name="decisions_pkey"),
    )
    op.create_index("decisions_pool_idx", "decisions", ["pool", "id"])


def _create_rollouts() -> None:
    op.create_table(
        "rollouts",
        text("id", is_needed=True),
        text("pool", is_needed=True),
        text("kind", is_needed=True),
        text("from_image_id"),
        text("to_image_id", is_needed=True),
        text("state", is_needed=True),
        flag("is_paused"),
        flag("is_hastened"),
        document("evidence"),
        text("reason"),
        instant("created_at", is_needed=True),
        text("created_by", is_needed=True),
        instant("changed_at", is_needed=True),
        instant("ended_at"),
        sa.PrimaryKeyConstraint("id", name="rollouts_pkey"),
        sa.CheckConstraint(
            "state IN ('canary', 'rolling', 'going_back', 'done', 'rolled_back', 'aborted')",
            name=op.f("rollouts_state_check"),
        ),
    )
    # One at a time in a pool, whoever begins it.
    unique_where("rollouts_open_idx", "rollouts", ["pool"], "ended_at IS NULL")
    op.create_index("rollouts_pool_idx", "rollouts", ["pool", "created_at", "id"])


def _create_events() -> None:
    op.create_table(
        "fleet_events",
        serial("id"),
        instant("at", is_needed=True),
        text("subject_kind", is_needed=True),
        text("subject_id", is_needed=True),
        text("pool"),
        text("text", is_needed=True),
        sa.PrimaryKeyConstraint("id", name="fleet_events_pkey"),
    )
    op.create_index("fleet_events_subject_idx", "fleet_events", ["subject_kind", "subject_id", "id"])
    op.create_table(
        "server_hours",
        instant("hour", is_needed=True),
        text("pool", is_needed=True),
        text("image_id", is_needed=True),
        text("state", is_needed=True),
        real("seconds"),
        real("idle_seconds"),
        sa.PrimaryKeyConstraint("hour", "pool", "image_id", "state", name="server_hours_pkey"),
    )


def _create_deployments() -> None:
    op.create_table(
        "deployments",
        text("id", is_needed=True),
        text("pool", is_needed=True),
        text("repository", is_needed=True),
        text("commit", is_needed=True),
        text("branch"),
        text("state", is_needed=True),
        text("image_id"),
        text("detail"),
        text("delivery_id"),
        instant("created_at", is_needed=True),
        text("created_by", is_needed=True),
        instant("changed_at", is_needed=True),
        instant("ended_at"),
        sa.PrimaryKeyConstraint("id", name="deployments_pkey"),
        sa.CheckConstraint(
            "state IN ('running', 'passed', 'failed', 'cancelled')", name=op.f("deployments_state_check")
        ),
    )
    # A delivery counts once, whoever sends it again.
    unique_where("deployments_delivery_idx", "deployments", ["delivery_id"], "delivery_id IS NOT NULL")
    op.create_index("deployments_created_idx", "deployments", ["created_at", "id"])
    op.create_table(
        "deployment_stages",
        text("deployment_id", is_needed=True),
        number("number"),
        text("name", is_needed=True),
        text("state", is_needed=True),
        text("output_id"),
        text("detail"),
        instant("started_at"),
        instant("ended_at"),
        sa.PrimaryKeyConstraint("deployment_id", "number", name="deployment_stages_pkey"),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployments.id"],
            name="deployment_stages_deployments_fkey",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint(
            "state IN ('waiting', 'running', 'passed', 'failed')", name=op.f("deployment_stages_state_check")
        ),
    )
