"""Answers in a user's own voice: OpenAI's chat completions, each written through the user's adapter."""
