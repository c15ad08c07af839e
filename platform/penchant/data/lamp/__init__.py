"""LaMP: histories of users and questions about them, in LaMP's own files or in OPPU's two."""

from penchant.data.lamp.histories import Item, LampData, LampUser, Query
from penchant.data.lamp.tasks import TASKS, LampTask, find_task

__all__ = ["TASKS", "Item", "LampData", "LampTask", "LampUser", "Query", "find_task"]
