"""What is computed from maps and models: scores, searches, comparisons, randomized models."""
