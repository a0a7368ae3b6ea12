"""Comparison of a study's numbers with an accepted baseline."""
