"""Floor 1: prompts, and the tasks that make and read them."""

from mechmem.arguments import names_its_arguments
from mechmem.tasks.base import (
    BEHAVIORS,
    PromptAnswers,
    QuestionTask,
    Task,
    available_tasks,
    get_task,
    register_task,
    with_reading,
)
from mechmem.tasks.choice import Choice
from mechmem.tasks.facts.conflict import Conflict
from mechmem.tasks.lab.addition_cued import AdditionCued, CuedWorld
from mechmem.tasks.lab.recall_reasoning import RecallReasoning, RecallWorld
from mechmem.tasks.paper1.addition import Addition
from mechmem.tasks.paper1.cipher import Cipher
from mechmem.tasks.paper1.colors import Colors
from mechmem.tasks.paper1.official import OfficialTask, TrainingText, rejected_pairs
from mechmem.tasks.prompts import Chat, Prompt, PromptSet, Splits
from mechmem.tasks.questions.perturb import (
    none_of_the_others,
    other_numbers,
    perturbed,
    shuffled_options,
)
from mechmem.tasks.questions.reasoning import Reasoning

__all__ = [
    "BEHAVIORS",
    "Addition",
    "AdditionCued",
    "Chat",
    "Choice",
    "Cipher",
    "Colors",
    "Conflict",
    "CuedWorld",
    "OfficialTask",
    "Prompt",
    "PromptAnswers",
    "PromptSet",
    "QuestionTask",
    "Reasoning",
    "RecallReasoning",
    "RecallWorld",
    "Splits",
    "Task",
    "TrainingText",
    "available_tasks",
    "get_task",
    "none_of_the_others",
    "other_numbers",
    "perturbed",
    "register_task",
    "rejected_pairs",
    "shuffled_options",
    "with_reading",
]

names_its_arguments(globals())
