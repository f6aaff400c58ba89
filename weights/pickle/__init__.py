"""What checkpoints hold in their pickles, read by core's machine, and pickles written without pickling."""
