"""Tests of the parity tool and the parity levels."""
