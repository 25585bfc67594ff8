"""One module a revision, in order. A revision that has been released is never changed."""
