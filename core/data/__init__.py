"""From files to batches: data sets, sample order, worker processes."""
