"""Stand-ins that we own for services a test can't have. Each says in its answers that it is a fake."""
