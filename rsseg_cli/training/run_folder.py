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
    """Paths and contents of a run's files; only rank 0 writes them.

    Attributes:
        path: The folder.
        metadata: Written into every model file of the run.
    """

    path: Path
    metadata: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = self.path / "config.yaml"
        """Resolved configuration."""
        self.model = self.path / "model.safetensors"
        """Model with the best validation score; without validation the last one."""
        self.last = self.path / "last.safetensors"
        """Model after the last step."""
        self.resume = self.path / "resume.pt"
        """Resume state of an unfinished run."""
        self.metrics = self.path / "metrics.jsonl"
        """Log of the training, one JSON object per line."""
        self.report = self.path / "report"

    @property
    def finished(self) -> bool:
        """Whether the run is complete; an interrupted one may have a best model, too."""
        return self.model.is_file() and self.last.is_file() and not self.resume.exists()

    def begin(self, config: str) -> None:
        """Create the folder and its `config.yaml`; remove only files of an earlier run.

        Raises:
            RssegError: The folder cannot be written.
        """
        with write_errors("the run folder", self.path, checkpoint.FIX):
            self.path.mkdir(parents=True, exist_ok=True)
        for file in (self.config, self.model, self.last, self.resume, self.metrics):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.report, ignore_errors=True)
        distributed.mark_begun(self.path)
        with checkpoint.replacing(self.config) as temporary:
            temporary.write_text(config, encoding="utf-8")

    def finish(self) -> None:
        """Mark the run, with its report, as complete: delete the resume state.

        Temporary files of safetensors, which killed attempts have left, are deleted, too.
        """
        if distributed.is_main():
            for file in (self.resume, *self.path.glob(".tmp??????")):
                file.unlink(missing_ok=True)

    def save_model(self, path: Path, model: Segmenter, score: Json, step: int) -> None:
        """Write a model file together with its validation score."""
        if distributed.is_main():
            metadata = self.metadata | {"score": score, "step": step}
            checkpoint.save_model(path, model.adapter_state(), metadata)

    def save_resume(self, state: dict[str, Any]) -> None:
        """Write the resume state."""
        if distributed.is_main():
            checkpoint.save_resume(self.resume, state | {"about": self.metadata})

    def append_metrics(self, record: dict[str, Json]) -> None:
        """Append a line to the metrics."""
        if distributed.is_main():
            with (
                write_errors(self.metrics.name, self.metrics, checkpoint.FIX),
                self.metrics.open("a", encoding="utf-8") as stream,
            ):
                stream.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Json]]:
        """Read the lines of the metrics, except for an incomplete last line."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def truncate_metrics(self, step: int) -> None:
        """Remove the metrics after `step`, because a resumed run repeats these steps."""
        if not distributed.is_main():
            return
        kept = [line for line in self.records() if int(str(line["step"])) <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        with checkpoint.replacing(self.metrics) as temporary:
            temporary.write_text(text, encoding="utf-8")
