"""Output as a terminal shows it, for pages."""
