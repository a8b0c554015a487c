"""`python -m experiments.compat sabre|pensieve ...`: our controllers and session under another simulator's rules."""

from __future__ import annotations

import argparse
import importlib
import sys

from abr import AbrError
from experiments.errors import ExperimentError
from player.errors import PlayerError
from traces import TraceError

COMMANDS = {
    "sabre": "Sabre's clock, link and metrics (Spiteri, Sitaraman, Sparacio, MMSys 2018)",
    "pensieve": "Pensieve's simulator and QoE_lin (Mao, Netravali, Alizadeh, SIGCOMM 2017)",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m experiments.compat", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if words[:1] == [name]:
            module = importlib.import_module(f"experiments.compat.{name}")
            module.add_arguments(command)
    parsed = parser.parse_args(words)
    try:
        text = module.run(parsed)
    except (AbrError, ExperimentError, PlayerError, TraceError, OSError) as error:
        print(f"compat: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
