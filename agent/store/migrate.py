"""Bring the database's schema up to date. The only module that imports alembic."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from sqlalchemy import func, select

from agent.store.engine import Store
from agent.store.schema import HEAD, read_revision, refuse_newer

# Any number will do as long as every version uses the same: "build-ag" in bytes.
_LOCK_KEY = int.from_bytes(b"build-ag")
# A migration may have to rewrite a table, and a second upgrade waits for the first one's lock meanwhile.
_LIMIT_S = 3600.0


def upgrade(store: Store) -> None:
    """Run every migration that the database lacks, all in one transaction: it has them all, or none.

    Any number of upgrades may run at once, from any machine: one works, the others wait and find nothing to
    do.
    Raises: StoreUnavailable; StoreRejected; SchemaMismatch.
    """
    with store.begin(limit_s=_LIMIT_S) as connection:
        if store.dialect == "postgresql":
            # Ends with the transaction, so a killed upgrade leaves no lock. On SQLite the transaction is the
            # lock.
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
        revision = read_revision(connection)
        if revision is not None:
            refuse_newer(revision)
        config = Config()
        config.set_main_option("script_location", "agent.store:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD)
