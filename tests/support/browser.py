"""Report pages in a headless browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: the page was not opened in a browser"
)


def run_in_page(page: Path, script: str, folder: Path) -> Any:
    """Run a script at the end of a page; return the JSON that it puts into the title.

    Args:
        page: The page, which is changed.
        script: Sets `document.title`.
        folder: Folder for the browser's profile.
    """
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"]
    command += ["--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    match = re.search(r"<title>(.*?)</title>", done.stdout)
    assert match is not None
    return json.loads(html.unescape(match[1]))
