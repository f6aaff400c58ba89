"""Whole folders as transformers and timm load them: configuration, preprocessing, model card."""
