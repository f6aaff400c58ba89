"""One sample of a data set: its bytes decoded to pixels, its label, and what datasets share."""
