"""A run, from its command line to its exit code."""
