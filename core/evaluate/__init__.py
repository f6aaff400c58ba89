"""Scores: accuracy, kNN, spread and effective rank of features."""
