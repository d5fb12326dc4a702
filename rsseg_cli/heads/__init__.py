"""From features to class scores, and their losses."""
