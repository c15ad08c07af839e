"""Whole tables at once, on every machine of a cluster: scoring rows, onboarding users. Resumable by file."""
