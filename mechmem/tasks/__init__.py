"""Floor 1: prompts, and the tasks that make and read them."""

from mechmem.tasks.base import (
    BEHAVIORS,
    PromptAnswers,
    Task,
    available_tasks,
    get_task,
    register_task,
)
from mechmem.tasks.prompts import Chat, Prompt, PromptSet, Splits

__all__ = [
    "BEHAVIORS",
    "Chat",
    "Prompt",
    "PromptAnswers",
    "PromptSet",
    "Splits",
    "Task",
    "available_tasks",
    "get_task",
    "register_task",
]
