"""Exceptions of the emulator: one base class, leaves by what the caller can do about it."""


class EmulatorError(Exception):
    """Base of every error raised by this package."""


class LinkError(EmulatorError, ValueError):
    """A link, queue or packet was described wrongly, or time ran backwards."""


class TransportError(EmulatorError, ValueError):
    """A transport or a request was described wrongly."""


class RealTimeError(EmulatorError):
    """The real-time shell or proxy cannot start here: something is missing, busy or not permitted."""
