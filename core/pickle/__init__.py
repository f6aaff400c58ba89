"""Pickles read without running code from them, for the readers of data sets and of weights alike."""
