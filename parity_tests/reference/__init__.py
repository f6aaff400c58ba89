"""The reference implementation in numpy float64."""
