"""OpenAI's protocol, with vLLM's names."""
