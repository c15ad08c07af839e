"""OPPU: one PEFT adapter per user over a task-adapted base."""
