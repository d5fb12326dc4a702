"""Errors of GDAL that rasterio has no public surface for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, RasterioError

GDAL_ERRORS = (RasterioError, CRSError, CPLE_BaseError)
"""All that reading may raise: rasterio leaves what GDAL finds late in its private base class."""


@contextmanager
def gdal_warnings() -> Iterator[list[str]]:
    """Yield a list that GDAL's warnings inside the block are appended to.

    rasterio only logs them.
    """
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
    """Return the first line of the message of GDAL behind an exception of rasterio."""
    return str(error.__cause__ or error).splitlines()[0]
