"""Records that cross a boundary. They hold data and know nothing of databases, queues or processes."""
