"""`rsseg bench`."""
