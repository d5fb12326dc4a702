"""A dataset on this machine: what `--src` leads to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rsseg_cli.classes import Class
from rsseg_cli.contract import Bands
from rsseg_cli.data.layout import Entry, find_entries, orphans, selects
from rsseg_cli.data.locate import SPEC_FILE, find_dataset, take_apart
from rsseg_cli.data.pair import Opener, Pair, Place
from rsseg_cli.data.spec import DatasetSpec, Split
from rsseg_cli.data.splits import DEFAULT_FRACTION, Plan, default_splits, plan_blocks, restrict
from rsseg_cli.data.statistics import measure
from rsseg_cli.errors import RssegError, UnreadableError, unknown


@dataclass
class Source:
    """A dataset's spec and where its files lie, perhaps narrowed to a split and a domain.

    Attributes:
        spec: What is known about the dataset.
        root: Folder that the spec's paths are relative to.
        split: Split asked for, None: whatever the command is about.
        domain: Domain asked for, None: all.
        remark: For a spec made by looking at the files, what was found and assumed; else empty.
    """

    spec: DatasetSpec
    root: Path
    split: str | None = None
    domain: str | None = None
    remark: str = ""
    _places: dict[Path, Place] = field(default_factory=dict, repr=False)
    _entries: list[Entry] | None = field(default=None, repr=False)
    _bands: dict[int, Bands] = field(default_factory=dict, repr=False)
    _plans: dict[tuple[str, ...], Plan] = field(default_factory=dict, repr=False)

    @classmethod
    def locate(cls, text: str, *, data_root: Path | None = None) -> Source:
        """Find the dataset that a user means.

        Args:
            text: A folder, a YAML file or the name of a preset, then optionally `:split` and
                `:domain` (`loveda::rural` is all splits of a domain).
            data_root: Folder that holds the datasets of presets; $RSSEG_DATA when None.

        Raises:
            RssegError: Nothing is there, with the places looked at.
        """
        name, split, domain = take_apart(text)
        spec, root, remark = find_dataset(name, data_root)
        return cls(spec, root, split, domain, remark)

    @property
    def classes(self) -> list[Class]:
        """The classes; a label index is a place in this list."""
        return self.spec.class_list()

    @property
    def opener(self) -> Opener:
        """How its files are opened."""
        return Opener(self.spec.file_bands, self.spec.reader, self.spec.code())

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that can be asked for: the spec's own, else blocks of ground."""
        return self.spec.splits or default_splits()

    def pairs(self, split: str | None = None) -> list[Pair]:
        """List images with their labels, cut down to the ground of a split.

        Args:
            split: A split instead of the one the source was located with; with neither, all.

        Raises:
            RssegError: Images without label, labels without image, files of another band count or
                type, an unknown split or domain, or a split without any ground.
        """
        name = split or self.split
        if name is None:
            return self._select(Split(), "")
        if name not in self.splits:
            raise unknown("split", name, self.splits, where=self.spec.name)
        return self._select(self.splits[name], name)

    def training_and_validation(
        self, *, fraction: float = DEFAULT_FRACTION, seed: int = 0
    ) -> tuple[list[Pair], list[Pair]]:
        """List the pairs to train on and those to validate on; they share no ground.

        Trains on the split asked for, else on `train`, else on everything. Validates on `val` if
        the spec has one, else on blocks held back from the training ground.

        Args:
            fraction: Share of the labelled ground to hold back.
            seed: Chooses the blocks.
        """
        own = self.spec.splits
        training = self.split or ("train" if "train" in own else None)
        if training in own and training != "val" and "val" in own:
            return self.pairs(training), self.pairs("val")
        whole = self.pairs(training) if training in own else self._select(Split(), "")
        held = default_splits(fraction)
        plan = plan_blocks(self.opener, whole, {"val": fraction}, seed=seed)
        taken = {"val": held["val"]}
        train = [restrict(pair, held["train"], "train", taken, plan) for pair in whole]
        val = [restrict(pair, held["val"], "val", {}, plan) for pair in whole]
        return [pair for pair in train if pair], [pair for pair in val if pair]

    def bands(self, pairs: Sequence[Pair] | None = None) -> Bands:
        """Describe the channels, with the spec's mean and std or those of the training ground.

        Args:
            pairs: Ground to measure where the spec gives no numbers; by default all of the source.
        """
        spec = self.spec
        chosen = self.pairs() if pairs is None else list(pairs)
        if spec.norm is not None:
            mean, std = spec.norm.mean, spec.norm.std
        else:
            mean, std = measure(self.opener, chosen)
        return Bands(
            names=tuple(band.name for band in spec.bands),
            wavelengths_nm=tuple(band.wavelength_nm for band in spec.bands),
            mean=mean,
            std=std,
            dtype=chosen[0].place.dtype,
            scale=spec.scale,
            gsd_m=spec.gsd_m,
        )

    def keep(self, fallback: Path) -> Path | None:
        """Write the spec of a folder that had none, for the user to name the classes.

        Args:
            fallback: Folder to write into when the dataset's own is read-only.

        Returns:
            The file written; None when the spec came from a file.
        """
        if not self.remark:
            return None
        text = self.spec.to_yaml(self.remark)
        for folder in (self.root, fallback):
            path = folder / SPEC_FILE
            if os.access(folder, os.W_OK):
                path.write_text(text, encoding="utf-8")
                return path
        raise UnreadableError("the folder cannot be written to", where=str(fallback))

    def entries(self) -> list[Entry]:
        """List every image on disk with its label, once labels without an image are refused."""
        if self._entries is None:
            found = find_entries(self.spec, self.root)
            lost = orphans(self.spec, self.root, found)
            if lost:
                raise RssegError(
                    f"{len(lost)} labels have no image: {_some([path.name for path in lost])}",
                    where=str(lost[0].parent),
                    fix="add the images, or move these labels away",
                )
            self._entries = found
        return self._entries

    def _select(self, split: Split, name: str) -> list[Pair]:
        excluded = {other: self.splits[other] for other in split.exclude}
        whole = [each for each in excluded.values() if each.box is None and each.blocks is None]
        entries = [
            entry
            for entry in self.entries()
            if selects(split, entry, self.root)
            and not any(selects(other, entry, self.root) for other in whole)
            and self._in_domain(entry)
        ]
        if not entries:
            asked = " ".join(part for part in (name, self.domain) if part)
            raise RssegError(
                f"no image of {self.spec.name} belongs to {asked or 'it'}",
                where=str(self.root),
                fix=f"splits: {', '.join(self.splits)}; domains: {', '.join(self.domains())}",
            )
        self._need_labels(entries, split)
        pairs = [self._pair(entry) for entry in entries]
        _check_alike(pairs, self.spec)
        ground = {other: each for other, each in excluded.items() if each not in whole}
        plan = self._plan(pairs, split, name, ground)
        cut = [restrict(pair, split, name, ground, plan) for pair in pairs]
        return [pair for pair in cut if pair is not None]

    def _plan(
        self, pairs: list[Pair], split: Split, name: str, ground: dict[str, Split]
    ) -> Plan | None:
        """Deal out blocks to all splits of the spec that ask for some."""
        if split.blocks is None and not any(other.blocks for other in ground.values()):
            return None
        key = tuple(pair.place.path for pair in pairs)
        if key not in self._plans:
            fractions = {n: each.blocks for n, each in self.splits.items() if each.blocks}
            self._plans[key] = plan_blocks(self.opener, pairs, fractions, seed=0)
        return self._plans[key]

    def domains(self) -> list[str]:
        """List the names of the domains found on disk."""
        return sorted({name for entry in self.entries() if (name := self._domain(entry))})

    def _domain(self, entry: Entry) -> str | None:
        for name, selection in self.spec.domains.items():
            if selects(selection, entry, self.root):
                return name
        return entry.groups.get("domain", "").lower() or None

    def _in_domain(self, entry: Entry) -> bool:
        if self.domain is None:
            return True
        if self.domain not in {*self.spec.domains, *self.domains()}:
            raise unknown("domain", self.domain, self.domains(), where=self.spec.name)
        return self._domain(entry) == self.domain

    def _need_labels(self, entries: Sequence[Entry], split: Split) -> None:
        withheld = [each for each in self.splits.values() if not each.labelled]
        bare = [
            entry.image.name
            for entry in entries
            if entry.label is None and not any(selects(w, entry, self.root) for w in withheld)
        ]
        if bare and split.labelled and any(entry.label for entry in self.entries()):
            raise RssegError(
                f"{len(bare)} images have no label: {_some(bare)}",
                where=str(self.root),
                fix="add labels of the same name, or move these images away",
            )

    def _pair(self, entry: Entry) -> Pair:
        if entry.image not in self._places:
            self._places[entry.image] = self.opener.place(entry.image)
        return Pair(
            name=entry.name,
            image=entry.image,
            label=entry.label,
            domain=self._domain(entry),
            regions=None,
            place=self._places[entry.image],
        )


def _check_alike(pairs: Sequence[Pair], spec: DatasetSpec) -> None:
    """Refuse images whose bands or types differ from the spec's, or from one another's."""
    first = pairs[0].place
    for place in (pair.place for pair in pairs):
        if place.bands != first.bands:
            raise RssegError(
                f"images differ in bands: {Path(first.path).name} has {first.bands}, "
                f"{Path(place.path).name} has {place.bands}",
                where=f"{first.path}, {place.path}",
                fix="keep images of one kind, or list the `band` numbers to read in dataset.yaml",
            )
        dtype = spec.dtype or first.dtype
        if place.dtype != dtype:
            raise RssegError(
                f"{Path(place.path).name} holds {place.dtype}, not {dtype}",
                where=place.path,
                fix=f"convert it, or correct `dtype` (the first image holds {first.dtype})",
            )
    listed = all(band.band is not None for band in spec.bands)
    if first.bands != len(spec.bands) and not listed:
        names = " ".join(band.name for band in spec.bands)
        raise RssegError(
            f"{Path(first.path).name} has {first.bands} bands, {spec.name} has "
            f"{len(spec.bands)} ({names})",
            where=first.path,
            fix="correct `bands`, or give each its `band` number in the file",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
