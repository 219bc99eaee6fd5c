"""Measures a model: right, fast, good. It may import everything; only the command line imports it."""
