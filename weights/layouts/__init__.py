"""Layouts: tables between canonical names and those of other projects."""
