"""Scores for questions by a language model: how much reasoning does each one need?"""

from mechmem.tasks.judging.agreement import Agreement, agreement, agreement_table
from mechmem.tasks.judging.cache import JudgeCache
from mechmem.tasks.judging.endpoint import EndpointJudge
from mechmem.tasks.judging.judge import (
    JUDGE_PROMPT,
    JUDGE_PROMPT_VERSION,
    BatchJudge,
    judge_questions,
    read_score,
)
from mechmem.tasks.judging.local import ModelJudge

__all__ = [
    "JUDGE_PROMPT",
    "JUDGE_PROMPT_VERSION",
    "Agreement",
    "BatchJudge",
    "EndpointJudge",
    "JudgeCache",
    "ModelJudge",
    "agreement",
    "agreement_table",
    "judge_questions",
    "read_score",
]
