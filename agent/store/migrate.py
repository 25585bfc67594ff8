"""Bring the database's schema up to date. The only module that imports alembic.

Each migration declares `compatible_from`: the oldest schema whose agents work with the one it makes. One that only
adds hands on what the migration before it declared, so that images can be rolled back; one that does more shuts
older agents out, and that is for a person to decide.
"""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, func, insert, select

from agent.errors import StateConflict
from agent.store.engine import Store
from agent.store.schema import HEAD, read_revision, read_standing
from agent.store.tables import schema_compatibility

# Any number will do as long as every version uses the same: "build-ag" in bytes.
_LOCK_KEY = int.from_bytes(b"build-ag")
# A migration may have to rewrite a table, and a second upgrade waits for the first one's lock meanwhile.
_LIMIT_S = 3600.0


def upgrade(store: Store, *, may_lock_out: bool = False) -> None:
    """Run every migration that the database lacks, all in one transaction: it has them all, or none.

    Any number of upgrades may run at once, from any machine: one works, the others wait and find nothing to
    do; so does one of an older version that works with the newer schema.
    Args:
        may_lock_out: agents of the schema that the database has now may be shut out by the new one.
    Raises: StateConflict when that is needed and not allowed; StoreUnavailable; StoreRejected; SchemaMismatch.
    """
    with store.begin(limit_s=_LIMIT_S) as connection:
        if store.dialect == "postgresql":
            # Ends with the transaction, so a killed upgrade leaves no lock. On SQLite the transaction is the
            # lock.
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
        revision = read_revision(connection)
        if revision is not None and revision >= HEAD:
            read_standing(connection, revision)
            return
        config = _config(connection)
        oldest = _compatible_from(config)
        if revision is not None and revision < oldest and not may_lock_out:
            raise StateConflict(
                f"schema {HEAD} works with agents from schema {oldest} on, and the database has {revision}: its "
                "agents could not start any more, nor could an older image be gone back to. To upgrade all the "
                "same, end those agents and give --lock-out-older"
            )
        command.upgrade(config, HEAD)
        connection.execute(delete(schema_compatibility))
        connection.execute(insert(schema_compatibility).values(compatible_from=oldest))


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "agent.store:migrations")
    config.attributes["connection"] = connection
    return config


def _compatible_from(config: Config) -> str:
    oldest: str = ScriptDirectory.from_config(config).get_revision(HEAD).module.compatible_from
    return oldest
