"""`rsseg adapt`."""
