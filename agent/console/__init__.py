"""The operators' console: pages for people. It does what the command line does, by the same functions."""
