"""Keeps away what libraries print while they work. Knows no torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No prints, warnings and log messages inside; errors are raised as ever."""
    level = logging.root.manager.disable
    handlers = list(logging.root.handlers)
    nowhere = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(level)
            logging.root.handlers[:] = handlers  # `logging.warning` sets one up where there is none
