"""The contract that a backend fulfils, and the parts of it that no framework needs to know."""
