"""Every figure the agent reports, declared once, and the ways it leaves: Librato, Prometheus, StatsD.

Code calls `Metrics` (registry.py) with a metric of catalogue.py; a sink knows neither builds nor queues.
"""
