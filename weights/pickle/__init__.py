"""Pickles read without running code from them, and written without pickling."""
