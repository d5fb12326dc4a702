"""`rsseg preview`."""
