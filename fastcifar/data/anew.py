"""Whether data sets are read from their own files, even where the user's cache keeps what was read of them before."""

from contextvars import ContextVar

READ_ANEW = ContextVar("READ_ANEW", default=False)
