"""The errors of experiments: what was wrong with a command line, a configuration or a run folder, in one line."""


class ExperimentError(Exception):
    """Base class of every error this package raises on bad input; reported in one line with exit code 1."""


class UsageError(ExperimentError, ValueError):
    """A command line that cannot be understood: an unknown key, a value of the wrong type. Exit code 2."""


class RunFolderError(ExperimentError):
    """A run folder that lacks a file, or holds one that cannot be read."""
