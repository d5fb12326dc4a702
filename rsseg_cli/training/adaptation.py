"""The section `adapt` of a configuration."""

from __future__ import annotations

from pydantic import Field

from rsseg_cli.training.self_training import SelfTraining


class Adaptation(SelfTraining.Config):
    """Settings of `rsseg adapt`: target scenes, model selection and self-training."""

    tgt: tuple[str, ...] = ()
    """Target scenes as `--tgt` takes them."""
    model: str | None = None
    """Model file to start from; null: the pretrained backbone."""
    source_free: bool = False
    """Train on the target only, without source data."""
    rare_class_temperature: float | None = Field(None, gt=0)
    """Temperature of rare class sampling on the source (DAFormer .01); null: as `data.sampling`."""
    holdout: float = Field(0.1, ge=0, lt=1)
    """Fraction of the target's tiles held out for model selection."""
    patience: int | None = Field(None, ge=1)
    """The run stops after this many validations without a better model; null: never."""
    max_class_shift: float = Field(0.3, gt=0, le=1)
    """The run stops when class frequencies on the target differ by more than this (total
    variation) both from those of the start and from those of the source's labels."""
    report_labels: bool = False
    """Also compute scores on the target's labels, for the log and the report only."""
    bands: tuple[int, ...] | None = None
    """File bands of target scenes, from 1, in the model's order; null: matched by name."""
    nodata: float | None = None
    """Nodata value of target scenes, instead of the value in the file."""
    gsd_m: float | None = Field(None, gt=0)
    """Pixel size in metres that target scenes are resampled to; null: no resampling."""
