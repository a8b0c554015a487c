"""The packager's errors: videos, settings and folders that cannot be packaged, always in one line."""


class PackagerError(Exception):
    """Base class of every error the packager raises on bad input."""


class VideoError(PackagerError):
    """A video that cannot be opened, has no video stream, or stops in the middle."""


class BuildError(PackagerError):
    """Settings that contradict each other, or an output folder that holds something else."""
