"""`rsseg predict`."""
