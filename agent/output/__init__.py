"""The way of a step's bytes: secrets masked, cut into lines, spooled on local disk, shipped to the database.

Knows what a step printed and which attempt it belongs to; knows nothing of how steps are run.
"""
