"""Tests of the project itself: architecture, documents."""
