"""Turn the short forms of the command line into Hydra overrides. Strings in, strings out.

    trace=lte            ->  trace.name=lte              (also abr=, video=; values may be names or paths)
    codec=prompt+h265    ->  codec=[prompt,h265]
    rate=1.5M            ->  trace.rate_bps=1500000.0    (also Mbps, Mbit/s, k, kbit/s, G, or plain bit/s)
    segment_s=0.5        ->  build.segment_s=0.5
    package=a/*,b/*      ->  package='a/*,b/*'           (also videos=, output=: paths, never several values of a sweep)

Under ``-m`` a comma keeps Hydra's meaning, one run per value: ``-m trace=lte,umts`` -> ``trace.name=lte,umts``.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from experiments.errors import UsageError

SCALAR_SHORTHANDS = {"trace": "trace.name", "abr": "abr.name", "video": "video.name", "launcher": "launcher.name"}
"""Group -> the key inside it that the bare group name stands for on the command line."""

ALIASES = {"segment_s": "build.segment_s"}
"""Short key -> the key that it stands for, value and all."""

RATE_KEYS = ("rate", "trace.rate_bps")
"""Keys whose value may carry a unit; all of them set ``trace.rate_bps``."""

PATH_KEYS = ("package", "videos", "output")
"""Keys whose value is a path, or several with commas, whatever characters it has."""

FREE_FORM = "abr.options."
"""Keys below this one are a plug-in's own, in no schema; Hydra wants new keys marked with a plus."""

_UNIT_BPS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
# A capital B would mean bytes, so only the prefix may be of either case.
_RATE = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([kKmMgG]?)(?:bps|bit/s|b/s|bit)?")
# What Hydra's grammar takes unquoted inside a value.
_PLAIN = re.compile(r"[A-Za-z0-9_\-/.:%+@]+(?: +[A-Za-z0-9_\-/.:%+@]+)*")
_HYDRA_VALUE = re.compile(r"[\[{'\"$]|(?:choice|range|interval|glob|sort|shuffle|tag|extend_list)\(")
_QUOTES = ("'", '"')
MULTIRUN_FLAGS = ("-m", "--multirun")


def parse_rate(text: str) -> float:
    """Return the rate in bit/s that ``text`` names, such as ``500k``, ``1.5M``, ``80 kbit/s`` or ``64000``.

    Raises:
        UsageError: not a number with one of these units, or not above zero.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"rate={text}: expected a number with an optional unit, such as 500k, 1.5M, 1.5Mbps or 64000")
    rate_bps = float(match[1]) * _UNIT_BPS[match[2].lower()]
    if rate_bps <= 0:
        raise UsageError(f"rate={text}: expected a rate above zero")
    return rate_bps


def rewrite_overrides(arguments: Sequence[str]) -> list[str]:
    """Return ``arguments`` with every short form replaced; all others, flags included, are passed on as they are.

    Raises:
        UsageError: a rate that is none, or an empty value.
    """
    multirun = any(argument in MULTIRUN_FLAGS for argument in arguments)
    return [_rewrite(argument, multirun=multirun) for argument in arguments]


def _rewrite(argument: str, *, multirun: bool) -> str:
    key, equals, value = argument.partition("=")
    if not equals or key.startswith("-"):
        return argument
    prefix = "++" if key.startswith("++") else "+" if key.startswith("+") else ""
    name = key[len(prefix) :]
    if f"{name}.".startswith(FREE_FORM) and not prefix:
        return f"++{argument}"
    if name in ALIASES:
        return f"{prefix}{ALIASES[name]}={value}"
    if name in PATH_KEYS:
        return f"{prefix}{name}={value if value[:1] in _QUOTES else quote(value)}"
    if name not in SCALAR_SHORTHANDS and name not in RATE_KEYS and name != "codec":
        return argument
    if not value.strip():
        raise UsageError(f"{argument}: a value is missing after '='")
    if _HYDRA_VALUE.match(value):
        return argument if name not in SCALAR_SHORTHANDS or value[0] in "{$" else f"{SCALAR_SHORTHANDS[name]}={value}"
    if value == "null" and name in RATE_KEYS:
        return f"{prefix}trace.rate_bps=null"
    if name == "codec":
        return f"{prefix}codec={_codec_value(value, multirun=multirun)}"
    if name in RATE_KEYS:
        rates = value.split(",") if multirun else [value]
        return f"{prefix}trace.rate_bps={','.join(repr(parse_rate(rate)) for rate in rates)}"
    return f"{prefix}{SCALAR_SHORTHANDS[name]}={_name_value(argument, value, multirun=multirun)}"


def _codec_value(value: str, *, multirun: bool) -> str:
    """Return a Hydra list of the codecs of one run, or under -m one such list per run."""
    if multirun:
        return ",".join(f"[{','.join(run.split('+'))}]" for run in value.split(","))
    return f"[{','.join(re.split('[+,]', value))}]"


def _name_value(argument: str, value: str, *, multirun: bool) -> str:
    """Return a name or path, quoted where Hydra's grammar needs it; under -m commas separate values."""
    if multirun and not Path(value).expanduser().exists():
        return ",".join(quote(part) for part in value.split(","))
    if "," in value and not Path(value).expanduser().exists():
        raise UsageError(f"{argument}: several values need -m (one run for each); no such file either")
    return quote(value)


def quote(value: str) -> str:
    """Return ``value`` so that Hydra reads this very string: no number, truth value or list."""
    if _PLAIN.fullmatch(value) and not _is_other_primitive(value):
        return value
    # Hydra's grammar: a backslash is itself, unless a quote follows; then it is doubled and the quote escaped.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return "'" + escaped + "\\" * trailing + "'"


def _is_other_primitive(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return value.lower() in ("true", "false", "null")
    return True
