"""Claims of the two papers, each with a recipe and a verdict."""
