"""The error of this package: bad trace files, names and settings, always in one line."""


class TraceError(ValueError):
    """A trace that cannot be read, found or made; the message says where, what was found and what was expected."""
