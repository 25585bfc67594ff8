"""What alembic runs to get a connection: it takes the one `agent.store.migrate` holds, with its lock.

There is no alembic.ini. For a new revision write `versions/vNNNN_what.py` by hand (revision "NNNN", `compatible_from`
as that of the one before it: docs/decisions/0009) and set `agent.store.schema.HEAD`; tests compare the outcome with
`agent.store.tables`, and hold that older agents find in it what they know.
"""

from __future__ import annotations

from alembic import context

from agent.store import tables_console, tables_fleet  # noqa: F401 - their tables join the others
from agent.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # Both databases undo DDL with the transaction it is in; alembic takes SQLite for one that doesn't.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
