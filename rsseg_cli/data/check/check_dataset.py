"""Check of a dataset on disk against its spec, which reports all problems at once."""

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
    """Number of images of a split and domain."""

    split: str
    """Name of the split; empty for images that are in none."""
    domain: str | None
    images: int
    labelled: int
    """Number of images with a label."""


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
        """True if the dataset has no problems."""
        return all(finding.fits is not False for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return asdict(self) | {"root": str(self.root), "fits": self.fits}


def check(source: Source, *, sample: int) -> Check:
    """Check a dataset; `sample` images and labels, spread evenly over all, are opened."""
    result = Check(source.spec.name, source.spec.title, source.root, notes=source.spec.notes)
    try:
        entries = find_entries(source.spec, source.root)
    except RssegError as error:
        result.findings.append(Finding("files", "readable", _message(error), False, error.fix))
        return result
    result.findings += _check_pairs(source, entries)
    result.counts, findings = _count(source, entries)
    result.findings += findings
    pairs, findings = _open(source, entries[:: max(1, len(entries) // sample)][:sample])
    result.findings += findings + _check_images(source, [pair.info for pair in pairs])
    result.findings += check_labels(source.opener, pairs)
    return result


def _message(error: RssegError) -> str:
    return error.what + (f" ({error.where})" if error.where else "")


def _check_pairs(source: Source, entries: Sequence[ImageEntry]) -> list[Finding]:
    """Check for images without label and labels without image, as after a partial download."""
    withheld = [split for split in source.spec.splits.values() if not split.labelled]
    unlabelled = [
        entry.path
        for entry in entries
        if entry.label is None and not any(_selects(w, entry, source.root) for w in withheld)
    ]
    orphaned = [path.name for path in orphans(source.spec, source.root, entries)]
    findings = []
    if unlabelled:
        fix = "download the rest of the labels, or move these images away"
        missing = _missing(unlabelled, "label")
        findings.append(Finding("labels", "one per image", missing, False, fix))
    if orphaned:
        fix = "download the rest of the images, or move these labels away"
        missing = _missing(orphaned, "image")
        findings.append(Finding("images", "one per label", missing, False, fix))
    images = counted(len(entries), "image")
    return findings or [Finding("pairs", "image and label", images, True)]


def _missing(names: Sequence[str], what: str) -> str:
    listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{len(names)} without {what}: {listed}"


def _selects(split: Split, entry: ImageEntry, root: Path) -> bool:
    try:
        return selects(split, entry, root)
    except RssegError:
        return False


def _count(source: Source, entries: Sequence[ImageEntry]) -> tuple[list[Count], list[Finding]]:
    """Count images per split and domain, and compare with the published numbers."""
    counts: list[Count] = []
    findings: list[Finding] = []
    members: dict[str, set[str]] = {}
    for name, split in source.spec.splits.items():
        try:
            images = [entry for entry in entries if source.admits(split, entry)]
        except RssegError as error:
            findings.append(Finding(f"split {name}", "listed", _message(error), False, error.fix))
            continue
        members[name] = {entry.path for entry in images}
        counts += _by_domain(source, name, images)
        findings += _check_number(name, split, len(images))
    in_splits = set().union(*members.values())
    counts += _by_domain(source, "", [entry for entry in entries if entry.path not in in_splits])
    shared = members.get("train", set()) & (members.get("val", set()) | members.get("test", set()))
    windows = any(split.box or split.blocks for split in source.spec.splits.values())
    if shared and not windows:
        number, fix = counted(len(shared), "image"), "`exclude` one split in the other"
        findings.append(Finding("splits", "disjoint", f"{number} in two", False, fix))
    return counts, findings + _check_swapped(source, counts)


def _by_domain(source: Source, split: str, entries: Sequence[ImageEntry]) -> list[Count]:
    images = Counter(source.domain_of(entry) for entry in entries)
    labelled = Counter(source.domain_of(entry) for entry in entries if entry.label)
    return [
        Count(split, domain, images[domain], labelled[domain])
        for domain in sorted(images, key=lambda name: name or "")
    ]


def _check_number(name: str, split: Split, images: int) -> list[Finding]:
    if split.images is None or not images:
        return []
    fits = True if images == split.images else None if images > split.images else False
    fix = "" if fits else "download the rest" if fits is False else "more than published"
    return [Finding(f"split {name}", counted(split.images, "image"), f"{images:,}", fits, fix)]


def _check_swapped(source: Source, counts: Sequence[Count]) -> list[Finding]:
    """Check for swapped lists: a labelled split without labels, and the reverse."""
    images: Counter[str] = Counter()
    labelled: Counter[str] = Counter()
    for count in counts:
        images[count.split] += count.images
        labelled[count.split] += count.labelled
    splits = {name: source.spec.splits[name] for name in images if name}
    empty = [n for n, split in splits.items() if split.labelled and not labelled[n]]
    full = [n for n, split in splits.items() if not split.labelled and labelled[n] == images[n]]
    return [
        Finding("lists", f"labels in {a}", f"labels in {b}", False, f"exchange {a} and {b}")
        for a, b in zip(empty, full, strict=False)
    ]


def _open(source: Source, entries: Sequence[ImageEntry]) -> tuple[list[Pair], list[Finding]]:
    """Open images; each error is reported once."""
    pairs: list[Pair] = []
    findings: dict[str, Finding] = {}
    for entry in entries:
        try:
            info = source.opener.info(entry.image)
        except RssegError as error:
            findings[error.what] = Finding("image", "readable", _message(error), False, error.fix)
        else:
            pairs.append(Pair(entry.name, entry.image, entry.label, None, None, info))
    return pairs, list(findings.values())


def _check_images(source: Source, infos: Sequence[SceneInfo]) -> list[Finding]:
    if not infos:
        return []
    spec = source.spec
    names = " ".join(band.name for band in spec.bands)
    bands = sorted({info.bands for info in infos})
    numbered = all(band.band is not None for band in spec.bands)
    fits = min(bands) >= max(spec.file_bands) if numbered else bands == [len(spec.bands)]
    dtypes = sorted({info.dtype for info in infos})
    same_dtype = len(dtypes) == 1 and spec.dtype in (None, dtypes[0])
    small = min(min(info.width, info.height) for info in infos) < 64
    systems = sorted({info.crs.to_string() if info.crs else "none" for info in infos})
    no_crs = "none" in systems
    return [
        Finding(
            "bands", f"{len(spec.bands)} ({names})", " or ".join(map(str, bands)), fits,
            "" if fits else "a `band` number for each, or a preset for this form",
        ),
        Finding(
            "stored type", spec.dtype or "one", " and ".join(dtypes), same_dtype,
            "" if same_dtype else f"dtype: {dtypes[0]}",
        ),
        Finding(
            "size", "any", _sizes(infos), None if small else True,
            "smaller than most tiles: they are padded" if small else "",
        ),
        Finding(
            "place", spec.reader.crs or "a CRS", ", ".join(system[:40] for system in systems[:3]),
            None if no_crs else True, _no_crs_note(source) if no_crs else "",
        ),
    ]  # fmt: skip


def _sizes(infos: Sequence[SceneInfo]) -> str:
    sizes = Counter((info.width, info.height) for info in infos)
    (width, height), _ = sizes.most_common(1)[0]
    others = f" and {counted(len(sizes) - 1, 'other')}" if len(sizes) > 1 else ""
    return f"{width} x {height}{others}"


def _no_crs_note(source: Source) -> str:
    if any(True for _ in source.root.rglob("*.rpb")):
        return "maps keep pixel order; warped by the .rpb files they are tens of metres off"
    return "maps keep pixel order (`reader: {crs: ...}` if it is known)"
