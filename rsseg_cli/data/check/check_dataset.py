"""Checks a dataset on disk against its spec; a mistake does not stop the check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rsseg_cli.data.check.check_labels import Finding, check_labels
from rsseg_cli.data.pair import Pair, SceneInfo
from rsseg_cli.data.source import Source
from rsseg_cli.data.spec.dataset_spec import Split
from rsseg_cli.data.spec.layout import ImageEntry, find_entries, orphans, selects
from rsseg_cli.errors import RssegError
from rsseg_cli.number_format import counted


@dataclass(frozen=True)
class Count:
    """Images of a split and domain.

    Attributes:
        split: Name of the split; empty for images that are in none.
        domain: Name of the domain, None where there is none.
        images: Images on disk.
        labelled: Those with a label.
    """

    split: str
    domain: str | None
    images: int
    labelled: int


@dataclass
class Check:
    """Result of `rsseg data check`."""

    name: str
    title: str
    root: Path
    counts: list[Count] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: str = ""

    @property
    def fits(self) -> bool:
        """Nothing is wrong."""
        return all(finding.fits is not False for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return asdict(self) | {"root": str(self.root), "fits": self.fits}


def check(source: Source, *, sample: int) -> Check:
    """Check a dataset.

    Args:
        source: Where it lies.
        sample: How many images and labels are opened, spread evenly over all of them.
    """
    found = Check(source.spec.name, source.spec.title, source.root, notes=source.spec.notes)
    try:
        entries = find_entries(source.spec, source.root)
    except RssegError as error:
        found.findings.append(Finding("files", "readable", _message(error), False, error.fix))
        return found
    found.findings += _partners(source, entries)
    found.counts, doubts = _count(source, entries)
    found.findings += doubts
    chosen = entries[:: max(1, len(entries) // sample)][:sample]
    infos, unreadable = _places(source, chosen)
    found.findings += unreadable + _images(source, list(infos.values()))
    pairs = [
        Pair(entry.name, entry.image, entry.label, None, None, infos[entry.path])
        for entry in chosen
        if entry.path in infos
    ]
    found.findings += check_labels(source.opener, pairs)
    return found


def _message(error: RssegError) -> str:
    return error.what + (f" ({error.where})" if error.where else "")


def _partners(source: Source, entries: Sequence[ImageEntry]) -> list[Finding]:
    """Find images without label and labels without image: an incomplete download."""
    withheld = [split for split in source.spec.splits.values() if not split.labelled]
    bare = [
        entry.path
        for entry in entries
        if entry.label is None and not any(_selects(w, entry, source.root) for w in withheld)
    ]
    lost = [path.name for path in orphans(source.spec, source.root, entries)]
    findings = []
    if bare:
        fix = "fetch the rest of the labels, or move these images away"
        findings.append(Finding("labels", "one per image", _missing(bare, "label"), False, fix))
    if lost:
        fix = "fetch the rest of the images, or move these labels away"
        findings.append(Finding("images", "one per label", _missing(lost, "image"), False, fix))
    if not findings:
        findings.append(Finding("pairs", "image and label", counted(len(entries), "image"), True))
    return findings


def _missing(names: Sequence[str], what: str) -> str:
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{len(names)} without {what}: {shown}"


def _selects(split: Split, entry: ImageEntry, root: Path) -> bool:
    try:
        return selects(split, entry, root)
    except RssegError:
        return False


def _count(source: Source, entries: Sequence[ImageEntry]) -> tuple[list[Count], list[Finding]]:
    """Count images per split and domain, and compare with what was published."""
    counts: list[Count] = []
    findings: list[Finding] = []
    members: dict[str, set[str]] = {}
    for name, split in source.spec.splits.items():
        try:
            own = [entry for entry in entries if source.admits(split, entry)]
        except RssegError as error:
            findings.append(Finding(f"split {name}", "listed", _message(error), False, error.fix))
            continue
        members[name] = {entry.path for entry in own}
        counts += _by_domain(source, name, own)
        findings += _published(name, split, own)
    rest = [entry for entry in entries if not any(entry.path in own for own in members.values())]
    counts += _by_domain(source, "", rest)
    shared = members.get("train", set()) & (members.get("val", set()) | members.get("test", set()))
    if shared and not _cut(source):
        fix = "`exclude` one split in the other"
        findings.append(
            Finding("splits", "disjoint", f"{counted(len(shared), 'image')} in two", False, fix)
        )
    return counts, findings + _swapped(source, counts)


def _cut(source: Source) -> bool:
    """Return whether splits share images and divide their pixels."""
    return any(split.box or split.blocks for split in source.spec.splits.values())


def _by_domain(source: Source, split: str, entries: Sequence[ImageEntry]) -> list[Count]:
    images = Counter(source.domain_of(entry) for entry in entries)
    labelled = Counter(source.domain_of(entry) for entry in entries if entry.label)
    return [
        Count(split, domain, images[domain], labelled[domain])
        for domain in sorted(images, key=lambda name: name or "")
    ]


def _published(name: str, split: Split, own: Sequence[ImageEntry]) -> list[Finding]:
    if split.images is None or not own:
        return []
    fits = True if len(own) == split.images else None if len(own) > split.images else False
    fix = "" if fits else "fetch the rest" if fits is False else "more than published"
    return [Finding(f"split {name}", counted(split.images, "image"), f"{len(own):,}", fits, fix)]


def _swapped(source: Source, counts: Sequence[Count]) -> list[Finding]:
    """Notice lists whose names were exchanged: labels where there are none to be, and none here."""
    share: dict[str, tuple[int, int]] = {}
    for count in counts:
        images, labelled = share.get(count.split, (0, 0))
        share[count.split] = (images + count.images, labelled + count.labelled)
    splits = source.spec.splits
    empty = [n for n, (_, k) in share.items() if n and splits[n].labelled and not k]
    full = [n for n, (i, k) in share.items() if n and not splits[n].labelled and k == i]
    return [
        Finding("lists", f"labels in {a}", f"labels in {b}", False, f"exchange {a} and {b}")
        for a, b in zip(empty, full, strict=False)
    ]


def _places(
    source: Source, entries: Sequence[ImageEntry]
) -> tuple[dict[str, SceneInfo], list[Finding]]:
    infos: dict[str, SceneInfo] = {}
    findings: dict[str, Finding] = {}
    for entry in entries:
        try:
            infos[entry.path] = source.opener.info(entry.image)
        except RssegError as error:
            findings[error.what] = Finding("image", "readable", _message(error), False, error.fix)
    return infos, list(findings.values())


def _images(source: Source, infos: Sequence[SceneInfo]) -> list[Finding]:
    if not infos:
        return []
    spec = source.spec
    names = " ".join(band.name for band in spec.bands)
    bands = sorted({info.bands for info in infos})
    listed = all(band.band is not None for band in spec.bands)
    fits = min(bands) >= max(spec.file_bands) if listed else bands == [len(spec.bands)]
    kinds = sorted({info.dtype for info in infos})
    typed = len(kinds) == 1 and spec.dtype in (None, kinds[0])
    systems = sorted({info.crs.to_string() if info.crs else "none" for info in infos})
    lost = "none" in systems
    return [
        Finding(
            "bands", f"{len(spec.bands)} ({names})", " or ".join(map(str, bands)), fits,
            "" if fits else "a `band` number for each, or a preset for this form",
        ),
        Finding(
            "stored type", spec.dtype or "one", " and ".join(kinds), typed,
            "" if typed else f"dtype: {kinds[0]}",
        ),
        Finding("size", "any", _sizes(infos), None if _small(infos) else True,
                "smaller than most tiles: they are padded" if _small(infos) else ""),
        Finding(
            "place", spec.reader.crs or "a CRS", ", ".join(system[:40] for system in systems[:3]),
            None if lost else True, _placeless(source) if lost else "",
        ),
    ]  # fmt: skip


def _sizes(infos: Sequence[SceneInfo]) -> str:
    sizes = Counter((info.width, info.height) for info in infos)
    (width, height), _ = sizes.most_common(1)[0]
    return f"{width} x {height}" + (
        f" and {counted(len(sizes) - 1, 'other')}" if len(sizes) > 1 else ""
    )


def _small(infos: Sequence[SceneInfo]) -> bool:
    return min(min(info.width, info.height) for info in infos) < 64


def _placeless(source: Source) -> str:
    """Return what a missing CRS means, and whether there are rational polynomials."""
    if any(True for _ in source.root.rglob("*.rpb")):
        return "maps keep pixel order; warped by the .rpb files they are tens of metres off"
    return "maps keep pixel order (`reader: {crs: ...}` if it is known)"
