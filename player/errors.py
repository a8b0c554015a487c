"""The player's errors: what was wrong with bytes, manifests, weights or frames, always in one line."""


class PlayerError(Exception):
    """Base class of every error the player raises on bad input."""


class BitstreamError(PlayerError, ValueError):
    """Segment or init bytes that are cut, corrupt, or of another version."""


class ManifestError(PlayerError, ValueError):
    """A manifest or quality sidecar that cannot be read or contradicts the files beside it."""


class GeneratorMismatchError(PlayerError):
    """A segment made for another generator than the one at hand."""


class GeneratorError(PlayerError):
    """A generator that cannot be loaded: missing files, wrong architecture, no network."""


class DecodeError(PlayerError):
    """Bytes that parse but cannot be turned into frames."""


class WeightsError(PlayerError):
    """Weights of a metric network that cannot be had or do not match their checksum."""


class SessionError(PlayerError):
    """A driver that misuses a session (time going backwards, an answer nobody asked for), or settings out of range."""


class FetchError(PlayerError):
    """A server that cannot be reached, or answers with something else than what was asked for."""


class PlaybackError(PlayerError):
    """A session that could not play anything."""


class PluginError(PlayerError):
    """A codec, metric or generator of another package that is not there, cannot be loaded, or breaks its promise."""
