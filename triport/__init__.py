"""The roof: the public API and the command line over the three frameworks."""

__version__ = "0.1.0"
