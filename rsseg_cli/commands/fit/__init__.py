"""`rsseg fit`."""
