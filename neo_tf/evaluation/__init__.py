"""Measures a model: whether it is right, and how fast it is. Only the command line imports this package."""
