"""``python -m experiments.sweep trace=all abr=all codec=prompt,h265 offsets=2 jobs=4 output=DIR``: a study.

Every controller over every trace, start offset and codec, in virtual time; quality is measured once, when the clip is
packaged, and looked up. The sessions become one data set (experiments.load); the same command goes on where it stopped.
A shorter way to write the suite of `python -m experiments.run`, with the same engine behind it.

keys:
  trace=all|FAMILIES|NAMES|PATHS  all families, families (all their members), traces, files; comma-separated
  abr=all|NAMES                   controllers; options as mpc:horizon=3+utility=log
  codec=prompt,h265               packages of `video` or `videos` to stream, made on first use ...
  package=DIR,DIR                 ... or packaged folders, or patterns of them
  offsets=1                       start offsets for each trace, evenly spaced over it
  limit=N                         at most N traces of each family
  output=DIR                      where the data set goes
Every other key of experiments.run (player.*, link.*, build.*, video, videos, session_s, seed, trace.share, cache_dir,
jobs, launcher) holds for all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.errors import UsageError
from experiments.overrides import quote, rewrite_overrides

SUITE_LISTS = {"trace": "suite.traces", "abr": "suite.abr", "codec": "suite.codec"}
SUITE_NUMBERS = {"offsets": "suite.offsets", "limit": "suite.limit"}
DEFAULTS = {"trace": "all", "abr": "all"}
DEFAULT_CODECS = "prompt,h265"


def suite_overrides(arguments: Sequence[str]) -> list[str]:
    """Return the overrides of experiments.run that the sweep's arguments stand for; UsageError if malformed."""
    values: dict[str, str] = dict(DEFAULTS)
    rest = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not value:
            raise UsageError(f"{argument}: expected key=value; --help lists the keys")
        if key in SUITE_NUMBERS and not (value.isascii() and value.isdigit()):
            raise UsageError(f"{argument}: expected a whole number")
        if key in SUITE_LISTS or key in SUITE_NUMBERS or key == "output":
            values[key] = value
        else:
            rest.append(argument)
    if "output" not in values:
        raise UsageError("output=DIR is missing: where the data set goes")
    if "codec" not in values and not any(argument.startswith("package=") for argument in rest):
        values["codec"] = DEFAULT_CODECS
    lists = [
        f"{long}=[{','.join(quote(part) for part in values[key].split(',') if part)}]"
        for key, long in SUITE_LISTS.items()
        if key in values
    ]
    numbers = [f"{long}={values[key]}" for key, long in SUITE_NUMBERS.items() if key in values]
    return rewrite_overrides([*rest, f"output={values['output']}", *lists, *numbers])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or any(flag in given for flag in ("-h", "--help")):
        print(__doc__)
        return 0
    from experiments import multirun
    from experiments.command_line import check_arguments

    try:
        overrides = suite_overrides(given)
        check_arguments(overrides)
    except UsageError as error:
        print(f"experiments.sweep: {error}", file=sys.stderr)
        return 2
    command = ["python", "-m", "experiments.sweep", *given]
    return multirun.main(overrides, command, "experiments.sweep")


if __name__ == "__main__":
    sys.exit(main())
