"""Errors and warnings of GDAL for which rasterio has no public interface."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, RasterioError

GDAL_ERRORS = (RasterioError, CRSError, CPLE_BaseError)
"""Exceptions of reading: rasterio raises late errors of GDAL as its private base class."""


@contextmanager
def gdal_warnings() -> Iterator[list[str]]:
    """Yield a list that collects the warnings of GDAL inside the block; rasterio only logs them."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("rasterio")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def first_line(error: BaseException) -> str:
    """Return the first line of GDAL's message for an exception of rasterio."""
    return str(error.__cause__ or error).splitlines()[0]
