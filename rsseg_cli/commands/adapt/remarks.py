"""Result of `rsseg adapt` in words: how the model was chosen, and why the run stopped early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rsseg_cli.commands.fit.job import FitReport
from rsseg_cli.report.training_charts import TARGET_LABELS
from rsseg_cli.settings import Json
from rsseg_cli.training.step_log import TrainingResult


def to_json(report: FitReport) -> dict[str, Any]:
    """Return what `adapt --json` prints: as `fit`, and why the run stopped early, or None."""
    return report.to_json() | {"stopped": stopped(report.result)}


def stopped(result: TrainingResult) -> str | None:
    """Return why a run stopped before its last step; None if it did not."""
    reason = (result.last or {}).get("stop")
    return None if reason is None else f"stopped at step {result.steps:,}: {reason}"


def remarks(result: TrainingResult, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the remarks of the report.

    Args:
        result: Result of the run.
        records: Lines of its metrics.
    """
    best, last = result.best or {}, result.last or {}
    texts = [
        "the model was chosen without labels of the target: by the information of its "
        "predictions on held-out target tiles, less what it lost on the source, over three "
        "validations",
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
            f"{TARGET_LABELS} (neither a step nor the choice used them): mIoU {start} at the first "
            f"validation, {chosen} of the chosen model, {end} of the last"
        )
    reason = stopped(result)
    return texts if reason is None else [reason, *texts]


def _number(value: Json | None) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"
