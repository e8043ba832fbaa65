"""Which question next? Scores of questions, batches, a rule to stop, and interviews."""

# A posterior imports this when it first needs it, which takes a second: not at the first answer.
import scipy.stats.qmc  # noqa: F401

from fssa_bayes.questions.choose import next_questions
from fssa_bayes.questions.goals import (
    BestItemInformation,
    Goal,
    InformationGain,
    PredictiveInformation,
    ValueOfInformation,
)
from fssa_bayes.questions.interview import Interview
from fssa_bayes.questions.scores import score_questions
from fssa_bayes.questions.stop import Stop, Verdict

__all__ = [
    "BestItemInformation",
    "Goal",
    "InformationGain",
    "Interview",
    "PredictiveInformation",
    "Stop",
    "ValueOfInformation",
    "Verdict",
    "next_questions",
    "score_questions",
]
