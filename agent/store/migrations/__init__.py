"""The schema's history, run by alembic from the installed package."""
