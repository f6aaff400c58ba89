"""Configurations of other projects as recipes: a file or a command line in, a recipe and notes out.

Every setting is used, or named with what becomes of it, or refused in one line; nothing is dropped silently, and no
code of another project is executed.
"""
