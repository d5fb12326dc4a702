"""Paths of the repository, of helper scripts and of shared data."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
SHARED = Path(os.environ.get("RSSEG_SHARED", ROOT.parent / "shared"))
"""Real imagery and weights; tests that need them skip where the folder is absent."""
IMPORTS = (ROOT, SUPPORT, *(ROOT / "tests" / name for name in ("methods", "predict")))
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join(map(str, IMPORTS)),
    "OMP_NUM_THREADS": "1",
}
"""Environment of processes that tests start: they import this tree and these helpers."""
