"""Tests of the triport package."""
