"""Structured output: texts that keep to a regular expression, to a choice of texts, or to a JSON schema."""
