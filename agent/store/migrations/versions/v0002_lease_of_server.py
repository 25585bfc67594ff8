"""Each server says its lease, and the database says how old an agent may be to work with it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
# Agents of 0001 start on no schema but their own, whatever it is.
compatible_from = "0002"


def upgrade() -> None:
    """Add `servers.lease_s` and the table `schema_compatibility`, whose one row the upgrade writes itself."""
    # Empty for servers that registered before: the leader then goes by its own lease, as it always had.
    op.add_column("servers", sa.Column("lease_s", sa.Float(), nullable=True))
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "schema_compatibility",
        sa.Column(
            "compatible_from", sa.String(collation="C") if is_postgresql else sa.String(), nullable=False
        ),
        sa.PrimaryKeyConstraint("compatible_from", name="schema_compatibility_pkey"),
    )
