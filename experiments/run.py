"""``python -m experiments.run``: the main job. Package a video, stream it over a trace, log, measure and plot it.

With ``-m``, or with a suite such as ``experiment=paper``, every combination of values is a session, and all sessions
are one data set (`experiments.multirun`); with ``render=true`` or ``mode=real`` every combination is a run of its own.
"""

import sys
from collections.abc import Sequence

from experiments.errors import UsageError
from experiments.overrides import MULTIRUN_FLAGS, rewrite_overrides

_HELP_FLAGS = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 for a run that failed, 2 for a command line that is wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    from experiments.command_line import check_arguments, help_text, is_sweep

    try:
        if any(flag in given for flag in _HELP_FLAGS):
            print(help_text())
            return 0
        overrides = rewrite_overrides(given)
        check_arguments(overrides)
        sweeps = is_sweep(overrides)
    except UsageError as error:
        print(f"experiments.run: {error}", file=sys.stderr)
        return 2
    if sweeps:
        from experiments import multirun

        plain = [text for text in overrides if text not in MULTIRUN_FLAGS]
        return multirun.main(plain, ["python", "-m", "experiments.run", *given])
    from experiments.job import run_hydra

    try:
        return run_hydra(overrides)
    except OSError as error:  # a run folder that cannot be made; the job reports its own errors
        print(f"experiments.run: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
