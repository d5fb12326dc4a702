"""Maps against the truth: `evaluate_rasters` for one, `evaluate_scenes` for many."""

from rsseg_cli.evaluate.evaluation import Evaluation
from rsseg_cli.evaluate.rasters import (
    BOUNDARY_PX,
    Comparison,
    evaluate_rasters,
    evaluate_scenes,
)
from rsseg_cli.evaluate.reference import read_class_list

__all__ = [
    "BOUNDARY_PX",
    "Comparison",
    "Evaluation",
    "evaluate_rasters",
    "evaluate_scenes",
    "read_class_list",
]
