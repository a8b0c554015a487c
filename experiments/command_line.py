"""Check the command line before Hydra runs it, so that a mistake is one line that names what was expected."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.errors import UsageError
from experiments.overrides import MULTIRUN_FLAGS, PATH_KEYS, SCALAR_SHORTHANDS
from experiments.schema import CONF, REAL, RunConfig, register

CONFIG_NAME = "config"
_FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir",
                     "-cd", "--experimental-rerun")  # fmt: skip
_HYDRA_KEYS = ("hydra",)
_HELP = """Stream a video over an emulated network, once for each codec, and write logs, a table and figures.

usage: python -m experiments.run [KEY=VALUE ...]         one run
       python -m experiments.run -m [KEY=V1,V2 ...]      one session for each combination of values, one data set
       python -m experiments.run experiment=paper        a suite: one data set likewise (docs/sweeps.md)

  trace=lte                 a trace by name (python -m traces list), the path of a file, or constant, step, markov
  trace=constant rate=500k  a link of constant rate
  abr=bola                  a controller (python -m abr lists them)
  video=demo                the demo clip, or the path of a video
  codec=prompt+h265         what to stream (python -m packager list)
  experiment=smoke          a named set of changes: {experiments}

Every key with its default (docs/experiments.md says what each means):

{keys}"""


def help_text() -> str:
    """Return what ``--help`` prints: usage, short forms, and every key with its default."""
    config = compose_config([])
    experiments = ", ".join(sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
    return _HELP.format(experiments=experiments, keys=OmegaConf.to_yaml(config).rstrip())


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Return the configuration that ``overrides`` give, without Hydra's own part."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(CONFIG_NAME, list(overrides))


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Return ``arguments`` with flags before overrides; Hydra's parser accepts them in no other order."""
    overrides = list(_overrides(arguments))
    flags = list(arguments)
    for override in overrides:
        flags.remove(override)
    return [*flags, *overrides]


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UsageError if Hydra or a schema would refuse ``arguments`` (already rewritten), in one line saying why."""
    multirun = any(argument in MULTIRUN_FLAGS for argument in arguments)
    overrides = list(_overrides(arguments))
    parsed = [parse_override(text) for text in overrides]
    defaults = compose_config([])
    for override in parsed:
        _check_key(override, defaults)
        if override.is_sweep_override() and not multirun:
            raise UsageError(f"{override.input_line}: several values need -m (one run for each)")
    for texts in _each_value(parsed):
        _check_values(texts)


def is_sweep(arguments: Sequence[str]) -> bool:
    """Say whether checked arguments ask for one data set of sessions: by ``-m``, or by a suite.

    With ``render=true`` or ``mode=real`` a combination needs a run folder of its own, and with a flag of Hydra's such
    as ``--cfg`` it is Hydra that is asked; then this is False.

    Raises:
        UsageError: keys of sweeps without a sweep, or the other way round.
    """
    overrides = list(_overrides(arguments))
    multirun = any(argument in MULTIRUN_FLAGS for argument in arguments)
    parsed = [parse_override(text) for text in overrides]
    config = to_run_config(compose_config([choices(one)[0] for one in parsed if choices(one)]))
    values = {text.lower() for one in parsed for text in choices(one)}
    folders = config.render or config.mode == REAL or not values.isdisjoint((f"mode={REAL}", "render=true"))
    flags = set(arguments) - set(overrides) - set(MULTIRUN_FLAGS)
    if flags or (folders and not config.suite.traces) or not (multirun or config.suite.traces):
        alone = [key for key in PATH_KEYS if getattr(config, key)]
        if alone and not flags:
            raise UsageError(f"{alone[0]}= is for sweeps without render=true and mode=real; add -m, or a suite")
        return False
    if folders:
        raise UsageError("a suite plays sessions without rendering; leave render=true and mode=real out")
    hydra = [one.input_line for one in parsed if one.key_or_group.startswith("hydra.")]
    if hydra:
        raise UsageError(f"{hydra[0]}: a sweep writes one data set to output=DIR (render=true makes a folder per run)")
    return True


def _overrides(arguments: Sequence[str]) -> Iterator[str]:
    """Yield what sets a key; flags are Hydra's own business."""
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument in _FLAGS_WITH_VALUE:
            position += 1
        elif not argument.startswith("-"):
            if "=" not in argument and not argument.startswith("~"):
                raise UsageError(f"{argument}: expected KEY=VALUE, such as trace=lte")
            yield argument
        position += 1


def parse_override(text: str) -> Override:
    """Return an override as Hydra understands it; UsageError if it does not."""
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise UsageError(f"{text}: cannot be parsed ({_one_line(error)}); put odd values in quotes") from error


def _check_key(override: Override, defaults: DictConfig) -> None:
    """Walk the key down the configuration and refuse it at the first name that is not there."""
    key = override.key_or_group
    if override.is_delete():
        raise UsageError(f"{override.input_line}: keys cannot be removed, only set")
    if key in SCALAR_SHORTHANDS or key == "experiment" or key.split(".")[0].split("/")[0] in _HYDRA_KEYS:
        return
    node: Any = defaults
    parts = key.split(".")
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth]) or "the top level"
        if not isinstance(node, DictConfig):
            raise UsageError(f"unknown key {key}: {where} is a single value, not a group")
        if OmegaConf.get_type(node) is dict:  # free-form options
            return
        known = [str(name) for name in node] + ([] if depth else ["experiment", "rate"])
        if part not in known:
            close = difflib.get_close_matches(part, known, n=1)
            hint = f"did you mean {'.'.join([*parts[:depth], close[0]])}? " if close else ""
            raise UsageError(f"unknown key {key}: {hint}known keys at {where}: {', '.join(sorted(known))}")
        node = node._get_node(part) if OmegaConf.is_missing(node, part) else node[part]


def _each_value(parsed: Sequence[Override]) -> Iterator[list[str]]:
    """Yield lists of plain overrides that together try every value of every sweep, each at least once."""
    each = [choices(override) for override in parsed]
    if not all(each):  # intervals and globs: only a sweeper knows their values
        return
    first = [values[0] for values in each]
    yield first
    for position, values in enumerate(each):
        in_range = parsed[position].is_range_sweep()
        for value in values[-1:] if in_range else values[1:]:  # the ends of a range say enough
            yield [*first[:position], value, *first[position + 1 :]]


def choices(override: Override) -> list[str]:
    """Return the plain overrides that an override stands for: one, or one for each value of a sweep."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if override.is_choice_sweep() or override.is_range_sweep():
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return []


def _check_values(texts: Sequence[str]) -> None:
    try:
        config = compose_config(texts)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_explain(error)) from error
    to_run_config(config)


def to_run_config(config: DictConfig) -> RunConfig:
    """Return a composed configuration as the dataclass; UsageError if a library refuses one of its settings."""
    try:
        settings = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UsageError(_explain(error)) from error
    except Exception as error:  # the libraries' own checks of their settings, each with an error class of its own
        raise UsageError(_one_line(error)) from error
    if not isinstance(settings, RunConfig):
        raise TypeError(f"the configuration is a {type(settings).__name__}, not a RunConfig")
    return settings


def _explain(error: BaseException) -> str:
    """Return one line from Hydra's report: which override it is about, and OmegaConf's reason."""
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        key = f"{cause.full_key}: " if cause.full_key else ""
        reason = str(cause.msg or cause).strip().splitlines()[0]
        hint = "; write a list, such as [1,2]" if "ListConfig" in reason else ""
        return f"{key}{reason}{hint}"
    return _one_line(error).split(" Config search path:")[0]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
