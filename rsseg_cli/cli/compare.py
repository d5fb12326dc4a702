"""`rsseg compare`: compares the scores of finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rsseg_cli.cli.command import command, print_json
from rsseg_cli.commands.options import OUTPUT, JsonOption, argument, option


@dataclass(frozen=True, kw_only=True)
class CompareOptions(JsonOption):
    """Options of `rsseg compare`."""

    runs: tuple[Path, ...] = argument("Run folders, or folders of `evaluate --report`.")
    report: Path | None = option(None, "Folder for compare.html, .md, .csv and .json.", OUTPUT)


@command
def compare(options: CompareOptions) -> None:
    """Compare the scores of finished runs: mean and deviation over seeds, difference to the first.

    Example: rsseg compare runs/lora-* runs/frozen-* --report compared/
    """
    from rsseg_cli.commands.compare import compare as compare_runs

    result = compare_runs(options.runs)
    if options.report is not None:
        result.write(options.report)
    print_json(result.to_json()) if options.as_json else result.show()
