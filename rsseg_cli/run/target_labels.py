"""Labels of a target, for a user who wants to see how an adaptation fares: they teach nothing.

Nothing here is called unless `adapt.report_labels` asks for it, and what comes out goes to the log
and the report only: neither a step nor the choice of a model sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rsseg_cli.bands import Bands
from rsseg_cli.classes import IGNORE, Class
from rsseg_cli.config import Adapt
from rsseg_cli.data.infer.infer_classes import find_classes
from rsseg_cli.data.infer.infer_layout import IMAGE_FOLDERS, find_layout
from rsseg_cli.data.pair import Opener, SourcePairs
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec.dataset_spec import BandSpec, ClassSpec, DatasetSpec
from rsseg_cli.errors import RssegError, UnreadableError
from rsseg_cli.run.targets import as_dataset

FIX = "leave out --report-labels: labels of the target are not needed"

Known = dict[Path, tuple[Opener, Path]]


def labelled(
    held: Sequence[SourcePairs],
    settings: Adapt,
    bands: Bands,
    classes: Sequence[Class],
    data_root: Path | None,
) -> list[SourcePairs]:
    """Give held-out ground of the targets its labels; scenes without one are left out.

    Args:
        held: The ground, as it is read without labels.
        settings: What the targets are.
        bands: The model's.
        classes: The model's.
        data_root: Where dataset presets lie.

    Raises:
        RssegError: There is no label, classes are others than the model's, or scenes are
            resampled.
    """
    if settings.gsd_m is not None:
        raise RssegError("labels are not resampled with --gsd", where="--report-labels", fix=FIX)
    known: Known = {}
    for text in settings.tgt:
        source = as_dataset(text, data_root) or _folder(Path(text), bands, classes)
        if source is not None:
            _require_same(source, classes)
            opener = source.opener
            known |= {e.image: (opener, e.label) for e in source.entries() if e.label is not None}
    found: list[SourcePairs] = []
    for opener, pairs in held:
        own = [replace(p, label=known[p.image][1]) for p in pairs if p.image in known]
        if own:
            how = replace(known[own[0].image][0], bands=opener.bands, reader=opener.reader)
            found.append((how, own))
    if not found:
        raise RssegError(
            "the target has no labels to report on", where=", ".join(settings.tgt), fix=FIX
        )
    return found


def _folder(path: Path, bands: Bands, classes: Sequence[Class]) -> Source | None:
    """Describe a folder of images and labels that say the model's classes."""
    root = path.expanduser()
    root = root.parent if root.name.lower() in map(str.lower, IMAGE_FOLDERS) else root
    if not root.is_dir():
        return None
    try:
        layout = find_layout(root)
    except UnreadableError:  # images alone: another target may have labels
        return None
    found = find_classes(layout.labels)
    # 0 and 255 are a mask for a model of two classes only; for any other they are an id and none.
    ids = found.encoding == "threshold" and len(classes) != 2
    spec = DatasetSpec(
        name=root.resolve().name,
        bands=tuple(BandSpec(name=name) for name in bands.names),
        images=(layout.glob,),
        pattern=layout.pattern,
        labels=(layout.template,),
        spare_labels=True,
        classes=tuple(ClassSpec(id=c.id, name=c.name, color=c.color) for c in classes),
        encoding="index" if ids else found.encoding,
        ignore=(IGNORE,) if ids else found.ignore,
        field=found.field,
    )
    return Source(spec, root, held_back=0.0)


def _require_same(source: Source, classes: Sequence[Class]) -> None:
    ours, theirs = ([(c.id, c.name) for c in one] for one in (classes, source.classes))
    if ours != theirs:
        listed = (", ".join(f"{i} {name}" for i, name in one) for one in (ours, theirs))
        raise RssegError(
            f"the classes of model and target labels differ: {' / '.join(listed)}",
            where=source.spec.name,
            fix=FIX,
        )
