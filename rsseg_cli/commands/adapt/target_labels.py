"""Labels of a target, for scores in the log and the report only.

They are opened only with `adapt.report_labels`, and are used neither for training nor for the
choice of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.commands.adapt.targets import as_dataset
from rsseg_cli.commands.evaluate.class_matching import require_same_classes
from rsseg_cli.contract import Bands
from rsseg_cli.data.infer.infer_classes import find_classes
from rsseg_cli.data.infer.infer_layout import IMAGE_FOLDERS, find_layout
from rsseg_cli.data.pair import Opener, SourcePairs
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec.dataset_spec import BandSpec, ClassSpec, DatasetSpec
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.training.adaptation import Adaptation

FIX = "leave out --report-labels: labels of the target are not needed"


def labelled(
    holdout: Sequence[SourcePairs],
    settings: Adaptation,
    bands: Bands,
    classes: Sequence[Class],
    data_root: Path | None,
) -> list[SourcePairs]:
    """Return held-out tiles of the targets with their labels; scenes without one are left out.

    Raises:
        RssegError: There is no label, the classes are not the model's, or scenes are resampled.
    """
    if settings.gsd_m is not None:
        raise RssegError("labels are not resampled with --gsd", where="--report-labels", fix=FIX)
    labels: dict[Path, tuple[Opener, Path]] = {}
    for text in settings.tgt:
        source = as_dataset(text, data_root) or _folder(Path(text), bands, classes)
        if source is not None:
            require_same_classes(
                classes,
                source.classes,
                of="model and target labels",
                where=source.spec.name,
                fix=FIX,
            )
            opener = source.opener
            labels |= {e.image: (opener, e.label) for e in source.entries() if e.label is not None}
    parts: list[SourcePairs] = []
    for opener, pairs in holdout:
        with_label = [replace(p, label=labels[p.image][1]) for p in pairs if p.image in labels]
        if with_label:
            label_opener, _ = labels[with_label[0].image]
            both = replace(label_opener, bands=opener.bands, reader=opener.reader)
            parts.append((both, with_label))
    if not parts:
        raise RssegError(
            "the target has no labels to report on", where=", ".join(settings.tgt), fix=FIX
        )
    return parts


def _folder(path: Path, bands: Bands, classes: Sequence[Class]) -> Source | None:
    """Return a folder of images and labels with the model's classes; None if it has no labels."""
    root = path.expanduser()
    root = root.parent if root.name.lower() in map(str.lower, IMAGE_FOLDERS) else root
    if not root.is_dir():
        return None
    try:
        layout = find_layout(root)
    except UnreadableError:  # images alone: another target may have labels
        return None
    labels = find_classes(layout.labels)
    # 0 and 255 are a mask only for a model of two classes; else 0 is an id and 255 is ignored.
    holds_ids = labels.encoding == "threshold" and len(classes) != 2
    spec = DatasetSpec(
        name=root.resolve().name,
        bands=tuple(BandSpec(name=name) for name in bands.names),
        images=(layout.glob,),
        pattern=layout.pattern,
        labels=(layout.template,),
        spare_labels=True,
        classes=tuple(ClassSpec(id=c.id, name=c.name, color=c.color) for c in classes),
        encoding="index" if holds_ids else labels.encoding,
        ignore=(IGNORE,) if holds_ids else labels.ignore,
        field=labels.field,
    )
    return Source(spec, root, holdout=0.0)
