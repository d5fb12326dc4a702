"""What a model file says about itself, as a model card and as a STAC item."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rsseg_cli.bands import Bands
from rsseg_cli.classes import Class
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.report import score_text as text
from rsseg_cli.words import counted

STAC = "1.1.0"
EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)
WEAK = 0.4
"""Classes with a lower IoU are named among the limits."""


@dataclass(frozen=True)
class Licence:
    """Terms that come with something, and where they are written."""

    what: str
    terms: str
    where: str


@dataclass(frozen=True)
class Card:
    """All that there is to say about a model.

    Attributes:
        name: What it is called.
        config: Settings of its run.
        classes: Its classes.
        bands: What it reads.
        sources: The data it was fitted on, as the model file says.
        scores: Scores on the held-back ground, if there was any.
        licences: Of the backbone and of the data.
        versions: Of rsseg and torch.
        parameters: Number of values in the model file.
        size: Bytes of the model file.
    """

    name: str
    config: Mapping[str, Any]
    classes: Sequence[Class]
    bands: Bands
    sources: Sequence[Mapping[str, Any]]
    scores: Scores | None
    licences: Sequence[Licence]
    versions: Mapping[str, str]
    parameters: int
    size: int

    @property
    def parts(self) -> str:
        """Backbone, method and head."""
        return " + ".join(self.config[part]["name"] for part in ("backbone", "method", "head"))

    def to_markdown(self) -> str:
        """Write the model card."""
        bands, tile = self.bands, self.config["data"]["tile"]
        size = f" at {bands.gsd_m:g} m" if bands.gsd_m else ""
        use = "rsseg predict scene.tif --model ."
        if self.config["backbone"].get("pretrained") and not self.config["backbone"].get("weights"):
            use += "\n# the backbone's weights come from the hub's cache; --weights FILE otherwise"
        parts = [
            f"# {self.name}",
            f"{self.parts}: maps {counted(len(self.classes), 'class')} from "
            f"{counted(len(bands), 'band')}{size}, in tiles of {tile} pixels. "
            f"Fitted with rsseg {self.versions['rsseg']} (torch {self.versions['torch']}); the "
            f"file holds {self.parameters:,} values.",
            f"```bash\n{use}\n```",
            "## Data",
            text.table(
                ["dataset", "training scenes", "fingerprint"],
                [[one["name"], str(one["train"]), one["fingerprint"]] for one in self.sources],
            ),
            "## Bands",
            text.table(
                ["band", "wavelength, nm", "mean", "std"],
                [
                    [name, "-" if nm is None else f"{nm:g}", f"{mean:.4g}", f"{std:.4g}"]
                    for name, nm, mean, std in zip(
                        bands.names, bands.wavelengths_nm, bands.mean, bands.std, strict=True
                    )
                ],
            ),
            "## Scores",
            *self._scores(),
            "## Limits",
            "\n".join(f"- {limit}" for limit in self.limits()),
            "## Licences",
            text.table(
                ["what", "terms", "where"],
                [[one.what, one.terms, one.where] for one in self.licences],
            ),
        ]
        return "\n\n".join(parts) + "\n"

    def _scores(self) -> list[str]:
        if self.scores is None:
            return ["Nothing was validated: how good it is is not known."]
        line = ", ".join(f"{name} {value}" for name, value in text.headline(self.scores))
        rows = [
            [str(row.id), row.name, text.percent(row.iou), text.count(row.pixels)]
            for row in self.scores.classes
        ]
        return [
            f"On held-back ground of the same data, in percent: {line}.",
            text.table(["id", "class", "IoU", "pixels"], rows),
        ]

    def limits(self) -> list[str]:
        """Say what it must not be trusted with, as far as that can be known."""
        bands = self.bands
        unit = f" times {bands.scale:g} is reflectance" if bands.scale else ", no known scale"
        found = [
            f"It reads {' '.join(bands.names)}, in this order, as {bands.dtype} "
            f"(stored value{unit}).",
            "It was validated on ground of the data it was fitted on. Other regions, seasons and "
            "sensors are another matter: evaluate it there first (`rsseg evaluate --on`).",
        ]
        if bands.gsd_m:
            found.append(f"It knows pixels of {bands.gsd_m:g} m; much finer or coarser ones not.")
        if not self.config["backbone"].get("pretrained", True):
            found.append("Its backbone started at random, without pretraining.")
        if self.scores is None:
            return found
        weak = [row.name for row in self.scores.present if (row.iou or 0.0) < WEAK]
        absent = [row.name for row in self.scores.classes if not row.pixels]
        if weak:
            found.append(f"IoU below {100 * WEAK:.0f} %: {', '.join(weak)}.")
        if absent:
            found.append(f"Never validated, as the held-back ground has none: {', '.join(absent)}.")
        return found

    def to_stac(self) -> dict[str, Any]:
        """Write a STAC item with the machine-learning-model extension; it has no footprint."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        pretrained = bool(self.config["backbone"].get("pretrained", True))
        backbone = self.config["backbone"]["name"]
        properties = {
            "datetime": now,
            "title": self.name,
            "description": f"{self.parts}, {counted(len(self.classes), 'class')}",
            "license": "other",
            "bands": self._described(),  # mlm:input names them, so the item must describe them
            "mlm:name": _identifier(self.name),
            "mlm:architecture": self.parts,
            "mlm:tasks": ["semantic-segmentation"],
            "mlm:framework": "PyTorch",
            "mlm:framework_version": self.versions["torch"],
            "mlm:pretrained": pretrained,
            "mlm:pretrained_source": backbone if pretrained else None,
            "mlm:batch_size_suggestion": self.config["training"]["batch"],
            "mlm:accelerator": None,
            "mlm:input": [self._input()],
            "mlm:output": [self._output()],
            "mlm:hyperparameters": {
                part: dict(self.config[part]) for part in ("method", "optimizer", "training")
            },
            "rsseg:stored_parameters": self.parameters,
        }
        if self.scores is not None:
            properties["rsseg:miou"] = self.scores.miou
        return {
            "type": "Feature",
            "stac_version": STAC,
            "stac_extensions": list(EXTENSIONS),
            "id": _identifier(self.name),
            "geometry": None,
            "properties": properties,
            "links": [],
            "assets": {
                "model": {
                    "href": "./model.safetensors",
                    "type": "application/vnd.safetensors",
                    "title": "adapter, head and what else was tuned",
                    "roles": ["mlm:model", "mlm:weights"],
                    "mlm:artifact_type": "safetensors",
                    "file:size": self.size,
                },
                "card": {"href": "./README.md", "type": "text/markdown", "roles": ["metadata"]},
                "config": {
                    "href": "./config.yaml",
                    "type": "application/yaml",
                    "roles": ["metadata"],
                },
            },
        }

    def _described(self) -> list[dict[str, Any]]:
        """Describe the bands: wavelengths in micrometres, as STAC has them."""
        pairs = zip(self.bands.names, self.bands.wavelengths_nm, strict=True)
        return [
            {"name": name} | ({} if nm is None else {"eo:center_wavelength": nm / 1000})
            for name, nm in pairs
        ]

    def _input(self) -> dict[str, Any]:
        side = self.config["data"]["tile"]
        scaling = zip(self.bands.mean, self.bands.std, strict=True)
        return {
            "name": "image",
            "bands": list(self.bands.names),
            "input": {
                "shape": [-1, len(self.bands), side, side],
                "dim_order": ["batch", "bands", "height", "width"],
                "data_type": self.bands.dtype,
            },
            "value_scaling": [
                {"type": "z-score", "mean": mean, "stddev": std} for mean, std in scaling
            ],
            "resize_type": None,
            "pre_processing_function": None,
        }

    def _output(self) -> dict[str, Any]:
        side = self.config["data"]["tile"]
        return {
            "name": "probabilities",
            "tasks": ["semantic-segmentation"],
            "result": {
                "shape": [-1, len(self.classes), side, side],
                "dim_order": ["batch", "class", "height", "width"],
                "data_type": "float32",
            },
            "classification:classes": [
                {
                    "value": one.id,
                    "name": _identifier(one.name),
                    "description": one.name,
                    "color_hint": "{:02X}{:02X}{:02X}".format(*one.color),
                }
                for one in self.classes
            ],
            "post_processing_function": None,
        }


def _identifier(name: str) -> str:
    """Write a name with the characters that identifiers may have."""
    plain = re.sub(r"[^0-9A-Za-z_.-]+", "-", name).strip("-_.")
    return plain if re.match(r"[A-Za-z].{2}", plain) else f"model-{plain}".rstrip("-")
