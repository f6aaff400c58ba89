"""Tests, the numpy reference and the parity tool. README.md describes the parity levels and their bounds."""
