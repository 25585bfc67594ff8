"""The only importer of rq and redis: carries build ids to slots, and slots' leases and orders back and forth.

Redis only carries. What is true stands in the database; whatever Redis loses is queued again from there.
"""
