"""Penchant learns what each person prefers from a handful of A/B choices and serves a reward model of their own."""

__version__ = "0.1.0"
