"""A later version of the agent: this one's code with one more migration, in a folder of its own, run as processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent, indent

from agent.store import schema

_AGENT = Path(schema.__file__).parents[1]
_REVISION = f"{int(schema.HEAD) + 1:04}"
# What a version that only adds may bring, and what one may bring that shuts older ones out.
ADDING = """
    op.add_column("servers", sa.Column("note", sa.String(), nullable=True))
    op.add_column("builds", sa.Column("weight", sa.Integer(), nullable=False, server_default="1"))
    op.create_table("notes", sa.Column("id", sa.Integer(), primary_key=True))
"""
RENAMING = """
    op.alter_column("servers", "slots", new_column_name="capacity")
"""


class LaterVersion:
    """`compatible_from` is `None` for a migration that hands on what the one before it declared."""

    revision = _REVISION

    def __init__(self, folder: Path, migration: str, *, compatible_from: str | None = None) -> None:
        self.folder = folder
        package = folder / "agent"
        shutil.copytree(_AGENT, package, ignore=shutil.ignore_patterns("__pycache__"))
        head = package / "store/schema.py"
        old, new = f'HEAD = "{schema.HEAD}"', f'HEAD = "{_REVISION}"'
        source = head.read_text()
        assert source.count(old) == 1
        head.write_text(source.replace(old, new))
        versions = package / "store/migrations/versions"
        newest = next(versions.glob(f"v{schema.HEAD}_*.py")).read_text()
        declared = next(line for line in newest.splitlines() if line.startswith("compatible_from = "))
        if compatible_from is not None:
            declared = f'compatible_from = "{compatible_from}"'
        lines = [
            "import sqlalchemy as sa",
            "from alembic import op",
            f'revision = "{_REVISION}"',
            f'down_revision = "{schema.HEAD}"',
            declared,
            "def upgrade():",
            indent(dedent(migration), "    "),
        ]
        (versions / f"v{_REVISION}_later.py").write_text("\n".join(lines))

    def command(self, *words: str, database_url: str) -> subprocess.CompletedProcess[str]:
        """Run one of its commands on a database."""
        return subprocess.run(
            [sys.executable, "-m", "agent.cli", *words],
            cwd=self.folder,
            env=self.environment({"BUILD_AGENT_DATABASE_URL": database_url}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return an environment in which `agent` is this version's."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {**clean, "PYTHONPATH": str(self.folder), **more}
