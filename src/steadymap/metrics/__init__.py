"""Metrics of attribution maps: similarity and accuracy."""
