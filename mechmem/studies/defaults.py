"""What every study says and does the same, known before torch is loaded.

The command line and the open page read it at once; a model's libraries would take them seconds.
"""

SHUFFLES = 19
"""Refits unless others are asked for: the fewest whose smallest p is 1/20."""

OWN_PROMPTS = "own prompts"
"""What stands for the task of a study of prompts without one."""

PLAN_LINE = "plan: "
"""How the line of progress begins that says what will be run; it is shown whole, and stays."""
