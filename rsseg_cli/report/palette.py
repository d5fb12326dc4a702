"""The colours of charts and figures."""

from __future__ import annotations

INK, EDGE = "#16202a", "#9aa5ae"
"""Text, and thin lines around pictures."""
SOFT, RULE, PAPER = "#5b6976", "#e2e5e4", "#fbfbf9"
"""Labels of axes, grid lines, and the background of the page."""
SERIES_LIGHT = ("#0b6e75", "#c2571a", "#5b4bb5", "#8a6d00", "#b03a6b", "#3f6212")
SERIES_DARK = ("#4fc0c4", "#f0985a", "#a99bf5", "#dcc04a", "#ee85b1", "#a3cf62")
"""Lines of a chart, in the light and in the dark colours of the page."""
