"""The database: engine, tables, migrations, and one module for each family of tables. The only SQL."""
