"""Command line: ``python -m benchmarks [NAME ...] --profile cpu``."""

import argparse
import os

from .experiments import EXPERIMENTS
from .runner import run


def main():
    """Run the experiments that the command line names."""
    names = list(dict.fromkeys(experiment.name for experiment in EXPERIMENTS))
    modules = {name.partition(".")[0] for name in names}
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--profile", choices=["cpu", "long", "gpu"], default="cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names) - modules:
        parser.error(
            f"no experiment {', '.join(unknown)}; there are {', '.join(names)}"
        )
    wanted = set(arguments.names) or modules
    chosen = [e for e in EXPERIMENTS if {e.name, e.name.partition(".")[0]} & wanted]
    if not any(experiment.profile == arguments.profile for experiment in chosen):
        profiles = sorted({experiment.profile for experiment in chosen})
        parser.error(
            f"nothing of {', '.join(arguments.names)} is in the profile "
            f"{arguments.profile}; --profile {' or '.join(profiles)} runs it"
        )
    run(chosen, arguments.profile, arguments.jobs)


main()
