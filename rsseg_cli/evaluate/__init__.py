"""Accuracy of maps: `evaluate_rasters` scores one map, `evaluate_scenes` many."""

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
