"""What a step found, in a file that the suite reads."""

import argparse
import json
from pathlib import Path


def command(description):
    """A parser with the options that every check has."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--result", type=Path, required=True, help="the file that the result is written to")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the program itself")
    parser.add_argument("--only", help="one of the models' names")
    return parser


class Result:
    """Collects a step's checks and figures, prints them as they come, and writes them.

    Attributes:
        checks: The number of checks that were made.
        failures: A line for each check that failed.
        figures: {name: value} of what was measured.
        notes: Lines for the report.
    """

    def __init__(self):
        self.checks = 0
        self.failures = []
        self.figures = {}
        self.notes = []

    def check(self, name, failure):
        """Notes one check.

        Args:
            name: What was checked.
            failure: What is wrong, in words; None where all is right.
        """
        self.checks += 1
        if failure:
            self.failures.append(f"{name}: {failure}")
        print(f"{name}: {failure or 'right'}", flush=True)

    def note(self, line):
        """Notes a line for the report."""
        self.notes.append(line)
        print(line, flush=True)

    def end(self, path):
        """Writes all of it, and returns the exit status: 0 where checks were made and none failed."""
        Path(path).write_text(json.dumps(vars(self), indent=1) + "\n", encoding="utf-8")
        return 1 if self.failures or not self.checks else 0
