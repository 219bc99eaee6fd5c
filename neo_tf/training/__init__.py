"""Training as the original trains."""
