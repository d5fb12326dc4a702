"""A dataset on this machine, as given by `--src`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rsseg_cli.classes import Class
from rsseg_cli.contract import Bands
from rsseg_cli.data.pair import Opener, Pair, SceneInfo
from rsseg_cli.data.resolve_source import SPEC_FILE, find_dataset, parse_source
from rsseg_cli.data.spec.class_map import ClassMap, Merge
from rsseg_cli.data.spec.dataset_spec import DatasetSpec, Split
from rsseg_cli.data.spec.layout import ImageEntry, find_entries, orphans, selects
from rsseg_cli.data.splits.spatial_split import SplitPlan, cut_out, plan_blocks, restrict
from rsseg_cli.data.statistics import measure
from rsseg_cli.errors import RssegError, UnreadableError, unknown
from rsseg_cli.number_format import counted, listed
from rsseg_cli.raster.grid import Window


@dataclass
class Source:
    """A dataset: its spec and the folder of its files, perhaps limited to a split and a domain.

    Attributes:
        spec: Description of the dataset.
        root: Folder that the spec's paths are relative to.
        split: Split asked for, None: whatever the command is about.
        domain: Domain asked for, None: all.
        holdout: Share of the labelled ground for `val` where the spec has none; 0: no `val`.
        remark: For a spec made by looking at the files, what was found and assumed; else empty.
        merge: What becomes of the spec's classes; None: they stay.
    """

    spec: DatasetSpec
    root: Path
    split: str | None = None
    domain: str | None = None
    remark: str = ""
    holdout: float = 0.2
    merge: Merge | None = None
    _info: dict[Path, SceneInfo] = field(default_factory=dict, repr=False)
    _entries: list[ImageEntry] | None = field(default=None, repr=False)
    _plan: SplitPlan | None = field(default=None, repr=False)

    @classmethod
    def locate(
        cls,
        text: str,
        *,
        data_root: Path | None = None,
        holdout: float = 0.2,
        class_map: str | None = None,
    ) -> Source:
        """Find the dataset that a user means.

        Args:
            text: A folder, a YAML file or the name of a preset, then optionally `:split` and
                `:domain` (`loveda::rural` is all splits of a domain).
            data_root: Folder that holds the datasets of presets; $RSSEG_DATA when None.
            holdout: Share of the ground for `val` where the dataset has none.
            class_map: File or preset that turns its classes into others.

        Raises:
            RssegError: Nothing is there, with the places looked at.
        """
        name, split, domain = parse_source(text)
        spec, root, remark = find_dataset(name, data_root)
        merge = None
        if class_map is not None:
            merge = ClassMap.read(class_map).fit(spec.class_list(), where=spec.name)
        return cls(spec, root, split, domain, remark, holdout, merge)

    @property
    def classes(self) -> list[Class]:
        """The classes; a label index is a place in this list."""
        return list(self.opener.classes)

    @property
    def opener(self) -> Opener:
        """Opener of its files."""
        spec = self.spec
        return Opener(spec.file_bands, spec.reader, spec.code(), self.merge, spec.align)

    @property
    def splits(self) -> dict[str, Split]:
        """The available splits: the spec's own, and always a `train` and a `val`.

        Where the spec has no `val`, blocks of the training ground are held back for it. They are
        the same in every run, so that `NAME:val` is never ground that a model has learnt.
        """
        own = self.spec.splits
        if "val" in own or not self.holdout:
            return own
        train = own.get("train", Split())
        return {
            **own,
            "train": train.model_copy(update={"exclude": (*train.exclude, "val")}),
            "val": train.model_copy(update={"blocks": self.holdout, "images": None}),
        }

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

    def training_and_validation(self) -> tuple[list[Pair], list[Pair]]:
        """List the pairs to train on (the split asked for, else `train`) and those of `val`.

        They share no ground: what `val` has of an image is cut out of the training pairs.

        Raises:
            RssegError: As `pairs`; nothing is labelled; or all training ground is in `val`.
        """
        name = self.split or ("train" if "train" in self.splits else "")
        training = self.pairs(name or None)
        whole = name in self.splits and not self.splits[name].holds_back
        validation = self.pairs("val") if "val" in self.splits and not whole else []
        held: dict[Path, list[Window]] = {}
        for pair in validation:
            held.setdefault(pair.image, []).extend(pair.windows)
        kept = [cut_out(pair, held.get(pair.image, ())) for pair in training]
        left = [pair for pair in kept if pair is not None]
        if not any(pair.label for pair in left):
            what = "has no labels" if left else "is all held back for validation"
            raise RssegError(
                f"{self.spec.name}{f':{name}' if name else ''} {what}",
                where=str(self.root),
                fix=f"another split: {', '.join(self.splits)}",
            )
        return left, validation

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
            dtype=chosen[0].info.dtype,
            scale=spec.scale,
            gsd_m=spec.gsd_m,
            bandwidths_nm=tuple(band.bandwidth_nm for band in spec.bands),
        )

    def save_inferred_spec(self, fallback: Path) -> Path | None:
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

    def entries(self) -> list[ImageEntry]:
        """List every image on disk with its label, once labels without an image are refused."""
        if self._entries is None:
            found = find_entries(self.spec, self.root)
            lost = orphans(self.spec, self.root, found)
            if lost:
                names = listed([path.name for path in lost], 8)
                raise RssegError(
                    f"no image for {counted(len(lost), 'label')}: {names}",
                    where=str(lost[0].parent),
                    fix="add the images, or move these labels away",
                )
            self._entries = found
        return self._entries

    def _select(self, split: Split, name: str) -> list[Pair]:
        entries = [
            entry
            for entry in self.entries()
            if self.admits(split, entry) and self._in_domain(entry)
        ]
        if not entries:
            asked = " ".join(part for part in (name, self.domain) if part)
            raise RssegError(
                f"no image of {self.spec.name} belongs to {asked}",
                where=str(self.root),
                fix=f"splits: {', '.join(self.splits)}; domains: {', '.join(self.domains())}",
            )
        self._need_labels(entries, split)
        pairs = [self._pair(entry) for entry in entries]
        _check_alike(pairs, self.spec)
        ground = {other: self.splits[other] for other in split.exclude if _cuts(self.splits[other])}
        dealt = split.blocks is not None or any(each.blocks for each in ground.values())
        plan = self._deal() if dealt else None
        cut = [restrict(pair, split, name, ground, plan) for pair in pairs]
        return [pair for pair in cut if pair is not None]

    def admits(self, split: Split, entry: ImageEntry) -> bool:
        """Return whether any part of an image is in a split."""
        whole = [self.splits[other] for other in split.exclude if not _cuts(self.splits[other])]
        return selects(split, entry, self.root) and not any(
            selects(other, entry, self.root) for other in whole
        )

    def _deal(self) -> SplitPlan:
        """Assign blocks of all scenes to the splits with a fraction, once."""
        if self._plan is None:
            asking = {name: each for name, each in self.splits.items() if each.blocks}
            counted = [
                any(self.admits(split, entry) for split in asking.values())
                for entry in self.entries()
            ]
            pairs = [self._pair(entry) for entry in self.entries()]
            fractions = {name: each.blocks for name, each in asking.items() if each.blocks}
            self._plan = plan_blocks(self.opener, pairs, counted, fractions)
        return self._plan

    def domains(self) -> list[str]:
        """List the names of the domains found on disk."""
        return sorted({name for entry in self.entries() for name in self._domains(entry)})

    def domain_of(self, entry: ImageEntry) -> str | None:
        """Return the domain of an image."""
        return next(self._domains(entry), None)

    def _domains(self, entry: ImageEntry) -> Iterator[str]:
        """List the domains of an image: those of the spec first, then that in its path."""
        for name, selection in self.spec.domains.items():
            if selects(selection, entry, self.root):
                yield name
        if entry.groups.get("domain"):
            yield entry.groups["domain"].lower()

    def _in_domain(self, entry: ImageEntry) -> bool:
        if self.domain is None:
            return True
        if self.domain not in {*self.spec.domains, *self.domains()}:
            raise unknown("domain", self.domain, self.domains(), where=self.spec.name)
        return self.domain in self._domains(entry)

    def _need_labels(self, entries: Sequence[ImageEntry], split: Split) -> None:
        withheld = [each for each in self.splits.values() if not each.labelled]
        bare = [
            entry.image.name
            for entry in entries
            if entry.label is None and not any(selects(w, entry, self.root) for w in withheld)
        ]
        if bare and split.labelled and any(entry.label for entry in self.entries()):
            raise RssegError(
                f"no label for {counted(len(bare), 'image')}: {listed(bare, 8)}",
                where=str(self.root),
                fix="add labels of the same name, or move these images away",
            )

    def _pair(self, entry: ImageEntry) -> Pair:
        if entry.image not in self._info:
            self._info[entry.image] = self.opener.info(entry.image)
        return Pair(
            name=entry.name,
            image=entry.image,
            label=entry.label,
            domain=self.domain_of(entry),
            regions=None,
            info=self._info[entry.image],
        )


def _cuts(split: Split) -> bool:
    """Return whether a split uses parts of images rather than whole ones."""
    return split.box is not None or split.blocks is not None


def _check_alike(pairs: Sequence[Pair], spec: DatasetSpec) -> None:
    """Check that images have the bands and type of the spec, and of each other."""
    first = pairs[0].info
    for info in (pair.info for pair in pairs):
        if info.bands != first.bands:
            raise RssegError(
                f"images differ in bands: {Path(first.path).name} has {first.bands}, "
                f"{Path(info.path).name} has {info.bands}",
                where=f"{first.path}, {info.path}",
                fix="keep images of one kind, or list the `band` numbers to read in dataset.yaml",
            )
        dtype = spec.dtype or first.dtype
        if info.dtype != dtype:
            raise RssegError(
                f"{Path(info.path).name} holds {info.dtype}, not {dtype}",
                where=info.path,
                fix=f"convert it, or correct `dtype` (the first image holds {first.dtype})",
            )
    listed = all(band.band is not None for band in spec.bands)
    if first.bands != len(spec.bands) and not listed:
        names = " ".join(band.name for band in spec.bands)
        raise RssegError(
            f"{Path(first.path).name} has {counted(first.bands, 'band')}, {spec.name} has "
            f"{len(spec.bands)} ({names})",
            where=first.path,
            fix="correct `bands`, or give each its `band` number in the file",
        )
