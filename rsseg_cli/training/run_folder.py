"""The folder of one run and its files."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsseg_cli import distributed
from rsseg_cli.atomic_write import write_errors
from rsseg_cli.segmenter import Segmenter
from rsseg_cli.settings import Json
from rsseg_cli.training import checkpoint


@dataclass
class RunFolder:
    """The files of a run; under several processes only rank 0 writes them.

    Attributes:
        path: The folder; it exists.
        metadata: Written into every model file of the run.
    """

    path: Path
    metadata: dict[str, Json] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / "config.yaml"

    @property
    def model(self) -> Path:
        """The model with the best validation score (the last one without validation)."""
        return self.path / "model.safetensors"

    @property
    def last(self) -> Path:
        """The model after the last step."""
        return self.path / "last.safetensors"

    @property
    def resume(self) -> Path:
        """State of an unfinished run to resume from."""
        return self.path / "resume.pt"

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.path / "report"

    @property
    def finished(self) -> bool:
        """Return whether the run is complete: a killed run may have a best model, too."""
        return self.model.is_file() and self.last.is_file() and not self.resume.exists()

    def begin(self, config: str) -> None:
        """Create the folder with its `config.yaml`; remove the files of an earlier run only.

        Raises:
            RssegError: The folder cannot be written.
        """
        with write_errors("the run folder", self.path, checkpoint.FIX):
            self.path.mkdir(parents=True, exist_ok=True)
        for file in (self.config, self.model, self.last, self.resume, self.metrics):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.report, ignore_errors=True)
        distributed.mark_begun(self.path)
        with checkpoint.replacing(self.config) as part:
            part.write_text(config, encoding="utf-8")

    def finish(self) -> None:
        """Delete the state to resume from: the run, with its report, is complete."""
        if distributed.is_main():
            self.resume.unlink(missing_ok=True)

    def save_model(self, path: Path, model: Segmenter, score: Json, step: int) -> None:
        """Write a model file together with its validation score."""
        if distributed.is_main():
            about = self.metadata | {"score": score, "step": step}
            checkpoint.save_model(path, model.adapter_state(), about)

    def save_resume(self, state: dict[str, Any]) -> None:
        """Write the state to resume from."""
        if distributed.is_main():
            checkpoint.save_resume(self.resume, state | {"about": self.metadata})

    def add(self, record: dict[str, Json]) -> None:
        """Append a line to the metrics."""
        if distributed.is_main():
            with (
                write_errors(self.metrics.name, self.metrics, checkpoint.FIX),
                self.metrics.open("a", encoding="utf-8") as stream,
            ):
                stream.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Json]]:
        """Read the lines of the metrics; a line cut short by a crash is left out."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def cut(self, step: int) -> None:
        """Remove the metrics after `step`: a resumed run takes these steps again."""
        if not distributed.is_main():
            return
        kept = [line for line in self.records() if int(str(line["step"])) <= step]
        with checkpoint.replacing(self.metrics) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
