"""The version of this project, in the one place where it stands."""

VERSION = "0.1.0"
