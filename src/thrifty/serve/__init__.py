"""The gateway: an OpenAI-compatible server that spends fewer reasoning tokens for the same answers."""
