"""Augmentation: all parameters of a view are drawn first, then applied to its pixels."""
