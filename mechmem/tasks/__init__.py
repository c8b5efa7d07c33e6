"""Floor 1: prompts, and the tasks that make and read them."""

from mechmem.tasks.addition_cued import AdditionCued, CuedWorld
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
    "AdditionCued",
    "BEHAVIORS",
    "Chat",
    "CuedWorld",
    "Prompt",
    "PromptAnswers",
    "PromptSet",
    "Splits",
    "Task",
    "available_tasks",
    "get_task",
    "register_task",
]
