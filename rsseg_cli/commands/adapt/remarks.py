"""Remarks on the result of `rsseg adapt`: choice of the model, and reason of an early stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rsseg_cli.commands.fit.job import FitReport
from rsseg_cli.report.training_charts import TARGET_LABELS
from rsseg_cli.settings import Json
from rsseg_cli.training.step_log import TrainingResult


def to_json(report: FitReport) -> dict[str, Any]:
    """Return the output of `adapt --json`: that of `fit`, and the reason of an early stop."""
    return report.to_json() | {"stopped": stop_reason(report.result)}


def stop_reason(result: TrainingResult) -> str | None:
    """Return why a run stopped before its last step; None if it did not."""
    reason = (result.last or {}).get("stop")
    return None if reason is None else f"stopped at step {result.steps:,}: {reason}"


def remarks(result: TrainingResult, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the remarks of the report, given the result and the lines of the metrics."""
    best, last = result.best or {}, result.last or {}
    texts = [
        "the model was chosen without labels of the target: by the mutual information of pixel "
        "and predicted class on held-out target tiles, less the loss of mIoU on the source, "
        "averaged over three validations",
        f"chosen: step {best.get('step')}, merit {_number(best.get('merit'))}, source mIoU "
        f"{_number(best.get('miou'))}; last: step {result.steps}, merit "
        f"{_number(last.get('merit'))}, source mIoU {_number(last.get('miou'))}",
    ]
    scores = [record["val"] for record in records if "val" in record]
    first = next((score["target_labels"] for score in scores if "target_labels" in score), None)
    if first is not None:
        on_labels = (first, *(score.get("target_labels") or {} for score in (best, last)))
        start, chosen, end = (_number(score.get("miou")) for score in on_labels)
        texts.append(
            f"{TARGET_LABELS} (used neither for training nor for the choice): mIoU {start} at the "
            f"first validation, {chosen} of the chosen model, {end} of the last"
        )
    reason = stop_reason(result)
    return texts if reason is None else [reason, *texts]


def _number(value: Json | None) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"
