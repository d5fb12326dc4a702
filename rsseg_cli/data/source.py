"""A dataset on disk, as selected by `--src`."""

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
    """A dataset: its spec and its folder, optionally limited to a split and a domain."""

    spec: DatasetSpec
    root: Path
    """Folder that the spec's paths are relative to."""
    split: str | None = None
    domain: str | None = None
    remark: str = ""
    """Assumptions behind an inferred spec; empty for a spec from a file."""
    holdout: float = 0.2
    """Fraction of the labelled area for `val` if the spec has no such split; 0 for no `val`."""
    merge: Merge | None = None
    """Class map that is applied to the spec's classes."""
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
        """Find a dataset.

        Args:
            text: A folder, a YAML file or a preset, optionally followed by `:split` and `:domain`
                (`loveda::rural` is all splits of a domain).
            data_root: Folder that holds the datasets of presets; $RSSEG_DATA when None.
            holdout: Fraction of the labelled area for `val` if the spec has no such split.
            class_map: File or preset of a class map to apply.

        Raises:
            RssegError: There is no such dataset, or the class map does not fit it.
        """
        name, split, domain = parse_source(text)
        spec, root, remark = find_dataset(name, data_root)
        merge = None
        if class_map is not None:
            merge = ClassMap.read(class_map).fit(spec.class_list(), where=spec.name)
        return cls(spec, root, split, domain, remark, holdout, merge)

    @property
    def classes(self) -> list[Class]:
        """The classes; label indices are positions in this list."""
        return list(self.opener.classes)

    @property
    def opener(self) -> Opener:
        """Opener of the dataset's files."""
        spec = self.spec
        return Opener(spec.file_bands, spec.reader, spec.code(), self.merge, spec.align)

    @property
    def splits(self) -> dict[str, Split]:
        """Splits of the spec; without a `val` there, spatial blocks of `train` are held out for it.

        The blocks are the same in every run, so that a model is never trained on `NAME:val`.
        """
        splits = self.spec.splits
        if "val" in splits or not self.holdout:
            return splits
        train = splits.get("train", Split())
        return {
            **splits,
            "train": train.model_copy(update={"exclude": (*train.exclude, "val")}),
            "val": train.model_copy(update={"blocks": self.holdout, "images": None}),
        }

    def pairs(self, split: str | None = None) -> list[Pair]:
        """Return the images of a split with their labels, limited to the pixels of the split.

        Args:
            split: A split in place of `self.split`; if both are None, all images.

        Raises:
            RssegError: Images without label, labels without image, files of another band count or
                type, an unknown split or domain, or a split without images.
        """
        name = split or self.split
        if name is None:
            return self._select(Split(), "")
        if name not in self.splits:
            raise unknown("split", name, self.splits, where=self.spec.name)
        return self._select(self.splits[name], name)

    def training_and_validation(self) -> tuple[list[Pair], list[Pair]]:
        """Return the training pairs (of `self.split`, else of `train`) and those of `val`.

        They share no pixels: the windows of `val` are cut out of the training pairs.

        Raises:
            RssegError: As `pairs`; nothing is labelled; or `val` contains all training pixels.
        """
        name = self.split or ("train" if "train" in self.splits else "")
        training = self.pairs(name or None)
        all_for_training = name in self.splits and not self.splits[name].holds_back
        validation = self.pairs("val") if "val" in self.splits and not all_for_training else []
        holdout: dict[Path, list[Window]] = {}
        for pair in validation:
            holdout.setdefault(pair.image, []).extend(pair.windows)
        remaining = [cut_out(pair, holdout.get(pair.image, ())) for pair in training]
        training = [pair for pair in remaining if pair is not None]
        if not any(pair.label for pair in training):
            what = "has no labels" if training else "is held out for validation as a whole"
            raise RssegError(
                f"{self.spec.name}{f':{name}' if name else ''} {what}",
                where=str(self.root),
                fix=f"another split: {', '.join(self.splits)}",
            )
        return training, validation

    def bands(self, pairs: Sequence[Pair] | None = None) -> Bands:
        """Describe the channels.

        Args:
            pairs: Images to measure mean and std on if the spec has none; by default all.
        """
        spec = self.spec
        pairs = self.pairs() if pairs is None else pairs
        norm = spec.norm
        mean, std = (norm.mean, norm.std) if norm is not None else measure(self.opener, pairs)
        return Bands(
            names=tuple(band.name for band in spec.bands),
            wavelengths_nm=tuple(band.wavelength_nm for band in spec.bands),
            mean=mean,
            std=std,
            dtype=pairs[0].info.dtype,
            scale=spec.scale,
            gsd_m=spec.gsd_m,
            bandwidths_nm=tuple(band.bandwidth_nm for band in spec.bands),
        )

    def save_inferred_spec(self, fallback: Path) -> Path | None:
        """Write an inferred spec as `dataset.yaml`, for the user to edit.

        Args:
            fallback: Folder to write into if the dataset's folder is read-only.

        Returns:
            The file written; None if the spec was not inferred.
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
        """Return every image on disk with its label.

        Raises:
            RssegError: There are no images, or there are labels without an image.
        """
        if self._entries is None:
            entries = find_entries(self.spec, self.root)
            labels = orphans(self.spec, self.root, entries)
            if labels:
                names = listed([path.name for path in labels], 8)
                raise RssegError(
                    f"no image for {counted(len(labels), 'label')}: {names}",
                    where=str(labels[0].parent),
                    fix="add the images, or move these labels away",
                )
            self._entries = entries
        return self._entries

    def _select(self, split: Split, name: str) -> list[Pair]:
        entries = [
            entry
            for entry in self.entries()
            if self.admits(split, entry) and self._in_domain(entry)
        ]
        if not entries:
            selection = " ".join(filter(None, (name, self.domain)))
            raise RssegError(
                f"no image of {self.spec.name} belongs to {selection}",
                where=str(self.root),
                fix=f"splits: {', '.join(self.splits)}; domains: {', '.join(self.domains())}",
            )
        self._check_labels(entries, split)
        pairs = [self._pair(entry) for entry in entries]
        _check_images(pairs, self.spec)
        others = {other: self.splits[other] for other in split.exclude if _cuts(self.splits[other])}
        blocks = split.blocks is not None or any(other.blocks for other in others.values())
        plan = self._split_plan() if blocks else None
        restricted = [restrict(pair, split, name, others, plan) for pair in pairs]
        return [pair for pair in restricted if pair is not None]

    def admits(self, split: Split, entry: ImageEntry) -> bool:
        """Return whether any pixels of an image are in a split."""
        others = [self.splits[other] for other in split.exclude]
        return selects(split, entry, self.root) and not any(
            selects(other, entry, self.root) for other in others if not _cuts(other)
        )

    def _split_plan(self) -> SplitPlan:
        """Assign blocks of all scenes to the splits with a fraction, once."""
        if self._plan is None:
            splits = self.splits
            fractions = {name: split.blocks for name, split in splits.items() if split.blocks}
            counted = [
                any(self.admits(splits[name], entry) for name in fractions)
                for entry in self.entries()
            ]
            pairs = [self._pair(entry) for entry in self.entries()]
            self._plan = plan_blocks(self.opener, pairs, counted, fractions)
        return self._plan

    def domains(self) -> list[str]:
        """Return the names of all domains on disk."""
        return sorted({name for entry in self.entries() for name in self._domains(entry)})

    def domain_of(self, entry: ImageEntry) -> str | None:
        """Return the domain of an image."""
        return next(self._domains(entry), None)

    def _domains(self, entry: ImageEntry) -> Iterator[str]:
        """Yield the domains of an image: those of the spec first, then the one in its path."""
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

    def _check_labels(self, entries: Sequence[ImageEntry], split: Split) -> None:
        """Raise an error for images without label, if that is not a property of their split."""
        withheld = [other for other in self.splits.values() if not other.labelled]
        missing = [
            entry.image.name
            for entry in entries
            if entry.label is None and not any(selects(w, entry, self.root) for w in withheld)
        ]
        if missing and split.labelled and any(entry.label for entry in self.entries()):
            raise RssegError(
                f"no label for {counted(len(missing), 'image')}: {listed(missing, 8)}",
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
    """Return whether a split uses windows of images rather than whole ones."""
    return split.box is not None or split.blocks is not None


def _check_images(pairs: Sequence[Pair], spec: DatasetSpec) -> None:
    """Check that all images have the bands and data type of the spec and of each other."""
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
    numbered = all(band.band is not None for band in spec.bands)
    if first.bands != len(spec.bands) and not numbered:
        names = " ".join(band.name for band in spec.bands)
        raise RssegError(
            f"{Path(first.path).name} has {counted(first.bands, 'band')}, {spec.name} has "
            f"{len(spec.bands)} ({names})",
            where=first.path,
            fix="correct `bands`, or give each its `band` number in the file",
        )
