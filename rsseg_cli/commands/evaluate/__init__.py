"""`rsseg evaluate`."""
