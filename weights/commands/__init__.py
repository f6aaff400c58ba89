"""The commands: convert, inspect, diff, load."""
