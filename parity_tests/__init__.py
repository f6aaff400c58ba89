"""The tests: what must hold, and how far frameworks may differ. README.md tells of the ladder and its bounds."""
