"""The answer of a report in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from fssa_bayes.report.simulated import SBC
from fssa_bayes.report.verdicts import Check

__all__ = ["judge_inference", "judge_model", "summarise"]


def summarise(checks: Sequence[Check]) -> list[str]:
    """Says what stopped with an error, whether posteriors and model hold, and what was skipped."""
    lines = []
    errors = [check.name for check in checks if check.verdict == "error"]
    if errors:
        number = "1 part" if len(errors) == 1 else f"{len(errors)} parts"
        lines.append(
            f"{number} of this report stopped with an error and judged nothing: "
            f"{', '.join(errors)}. The table shows each error; without these checks the answers "
            "below are incomplete."
        )
    lines.append(judge_inference([check for check in checks if not check.sees_wrong_model]))
    lines.append(judge_model([check for check in checks if check.sees_wrong_model]))
    skipped = [check.name for check in checks if check.verdict == "skipped"]
    if skipped:
        lines.append(f"Not checked: {', '.join(skipped)}; the table says why.")
    return lines


def judge_inference(checks: Sequence[Check]) -> str:
    """Says whether the posteriors are those of the model, from checks on simulated people."""
    failed = [check for check in checks if check.verdict == "fail"]
    if failed:
        return (
            "The posteriors are not those of the fitted model: "
            f"{', '.join(check.name for check in failed)} failed. What to do: {failed[0].advice}."
        )
    if any(check.name == SBC and check.verdict == "pass" for check in checks):
        return (
            "The posteriors are those of the fitted model, as far as people simulated from it can "
            "show; they could not show that the model is wrong."
        )
    return "Whether the posteriors are those of the fitted model was not checked in full."


def judge_model(checks: Sequence[Check]) -> str:
    """Says whether the model fits real people, from checks on people held out."""
    judged = [check for check in checks if check.verdict in ("pass", "fail")]
    failed = [check for check in judged if check.verdict == "fail"]
    if failed:
        return (
            f"The model does not fit the real people held out: {len(failed)} of {len(judged)} "
            f"checks failed ({', '.join(check.name for check in failed)}). What to do: "
            f"{failed[0].advice}."
        )
    if judged:
        return f"None of {len(judged)} checks on the real people held out contradicts the model."
    return "Whether the model fits real people was not checked."
