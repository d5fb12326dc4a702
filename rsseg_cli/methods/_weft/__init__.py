"""Parts of WEFT."""
