"""The controllers' errors: a wrong name, option, ladder, observation or plug-in, always in one line."""


class AbrError(Exception):
    """Base class of every error a controller, an estimator or the registry raises."""


class UnknownControllerError(AbrError, LookupError):
    """No controller of this name is built in or installed."""


class OptionError(AbrError, ValueError):
    """An option the controller does not know, or a value outside its range."""


class LadderError(AbrError, ValueError):
    """A ladder whose arrays disagree in shape or hold impossible values."""


class ObservationError(AbrError, ValueError):
    """An observation or a throughput sample that cannot have happened."""


class PluginError(AbrError):
    """A controller installed by another package that cannot be loaded or does not keep the protocol."""
