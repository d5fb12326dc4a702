"""Description of a fitted model as a model card and as a STAC item."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rsseg_cli.classes import Class
from rsseg_cli.contract import Bands
from rsseg_cli.metrics.scores import Scores
from rsseg_cli.number_format import counted
from rsseg_cli.report.score_text import headline
from rsseg_cli.report.table import ReportTable, count_cell, percent_cell, text_cell

STAC = "1.1.0"
EXTENSIONS = (
    "https://stac-extensions.github.io/mlm/v1.5.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
)
WEAK = 0.4
"""The limitations list the classes with a lower IoU."""


@dataclass(frozen=True)
class Licence:
    """Licence of a component."""

    component: str
    terms: str
    source: str


@dataclass(frozen=True)
class ModelCard:
    """Description of a fitted model."""

    name: str
    config: Mapping[str, Any]
    classes: Sequence[Class]
    bands: Bands
    sources: Sequence[Mapping[str, Any]]
    """Training data as recorded in the model file."""
    scores: Scores | None
    """Scores on the validation set."""
    licences: Sequence[Licence]
    versions: Mapping[str, str]
    """Versions of rsseg and torch."""
    parameters: int
    size: int
    """Bytes of the model file."""

    @property
    def parts(self) -> str:
        """Backbone, method and head."""
        return " + ".join(self.config[part]["name"] for part in ("backbone", "method", "head"))

    def to_markdown(self) -> str:
        """Return the model card."""
        bands, tile = self.bands, self.config["data"]["tile"]
        size = f" at {bands.gsd_m:g} m" if bands.gsd_m else ""
        use = "rsseg predict scene.tif --model ."
        if self.config["backbone"].get("pretrained") and not self.config["backbone"].get("weights"):
            use += "\n# backbone weights: the Hugging Face cache, or --weights FILE"
        parts = [
            f"# {self.name}",
            f"{self.parts}: maps {counted(len(self.classes), 'class')} from "
            f"{counted(len(bands), 'band')}{size}, in tiles of {tile} pixels. "
            f"Trained with rsseg {self.versions['rsseg']} (torch {self.versions['torch']}); the "
            f"file holds {self.parameters:,} parameters.",
            f"```bash\n{use}\n```",
            "## Data",
            ReportTable.of_text(
                ["Dataset", "Training scenes", "Fingerprint"],
                [[data["name"], str(data["train"]), data["fingerprint"]] for data in self.sources],
            ).to_markdown(),
            "## Bands",
            ReportTable.of_text(
                ["Band", "Wavelength, nm", "Mean", "Std"],
                [
                    [name, "-" if nm is None else f"{nm:g}", f"{mean:.4g}", f"{std:.4g}"]
                    for name, nm, mean, std in zip(
                        bands.names, bands.wavelengths_nm, bands.mean, bands.std, strict=True
                    )
                ],
            ).to_markdown(),
            "## Scores",
            *self._scores(),
            "## Limitations",
            "\n".join(f"- {sentence}" for sentence in self.limitations()),
            "## Licences",
            ReportTable.of_text(
                ["Component", "Licence", "Source"],
                [[licence.component, licence.terms, licence.source] for licence in self.licences],
            ).to_markdown(),
        ]
        return "\n\n".join(parts) + "\n"

    def _scores(self) -> list[str]:
        if self.scores is None:
            return ["The model was not validated; its accuracy is unknown."]
        line = ", ".join(f"{score.name} {score.text}" for score in headline(self.scores))
        rows = [
            (
                text_cell(str(row.id)),
                text_cell(row.name),
                percent_cell(row.iou),
                count_cell(row.pixels),
            )
            for row in self.scores.classes
        ]
        return [
            f"On the validation set of the same data, in percent: {line}.",
            ReportTable("", ("Id", "Class", "IoU", "Pixels"), tuple(rows)).to_markdown(),
        ]

    def limitations(self) -> list[str]:
        """Return the known limitations, a sentence each."""
        bands = self.bands
        unit = f" times {bands.scale:g} is reflectance" if bands.scale else ", no known scale"
        sentences = [
            f"It reads {' '.join(bands.names)}, in this order, as {bands.dtype} "
            f"(stored value{unit}).",
            "It was validated on scenes of the datasets it was trained on. Evaluate it on labelled "
            "scenes of other regions, seasons or sensors before use there (`rsseg evaluate --on`).",
        ]
        if bands.gsd_m:
            sentences.append(
                f"It was trained on pixels of {bands.gsd_m:g} m, not on much finer or coarser ones."
            )
        if not self.config["backbone"].get("pretrained", True):
            sentences.append("Its backbone was not pretrained.")
        if self.scores is None:
            return sentences
        weak = [row.name for row in self.scores.present if (row.iou or 0.0) < WEAK]
        absent = [row.name for row in self.scores.classes if not row.pixels]
        if weak:
            sentences.append(f"IoU below {100 * WEAK:.0f} %: {', '.join(weak)}.")
        if absent:
            sentences.append(
                f"Absent from the validation set, so not validated: {', '.join(absent)}."
            )
        return sentences

    def to_stac(self) -> dict[str, Any]:
        """Return a STAC item with the machine-learning-model extension, without a footprint."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        pretrained = bool(self.config["backbone"].get("pretrained", True))
        backbone = self.config["backbone"]["name"]
        properties = {
            "datetime": now,
            "title": self.name,
            "description": f"{self.parts}, {counted(len(self.classes), 'class')}",
            "license": "other",
            "bands": self._band_objects(),  # mlm:input names them, so the item must describe them
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
                    "title": "adapter, head and other trained parameters",
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

    def _band_objects(self) -> list[dict[str, Any]]:
        """Return STAC's band objects, with wavelengths in micrometres."""
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
                    "value": cls.id,
                    "name": _identifier(cls.name),
                    "description": cls.name,
                    "color_hint": cls.hex_color.removeprefix("#").upper(),
                }
                for cls in self.classes
            ],
            "post_processing_function": None,
        }


def _identifier(name: str) -> str:
    """Return a name reduced to the characters of identifiers."""
    plain = re.sub(r"[^0-9A-Za-z_.-]+", "-", name).strip("-_.")
    return plain if re.match(r"[A-Za-z].{2}", plain) else f"model-{plain}".rstrip("-")
