"""The packager's errors: what was wrong with a video, a setting or a folder, always in one line."""


class PackagerError(Exception):
    """Base class of every error the packager raises on bad input."""


class VideoError(PackagerError, ValueError):
    """A file that is not a video this build can read: missing, damaged, without pictures, or changing its size."""


class BuildError(PackagerError, ValueError):
    """A setting out of its range, or settings that contradict each other."""


class EncodeError(PackagerError):
    """An encoder that cannot be opened or did not deliver what was asked of it."""


class WorkerError(PackagerError):
    """A process that worked on a segment and died, or met what it could not expect."""


class FolderError(PackagerError):
    """An output folder that cannot be used: another build's, unfinished, damaged, or not ours to replace."""


class ServeError(PackagerError):
    """A folder that cannot be published, or an address that cannot be listened on."""
