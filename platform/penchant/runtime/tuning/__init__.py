"""Sweeps: many fits at small budgets, the poor ones stopped early, and the settings that did best by validation."""
