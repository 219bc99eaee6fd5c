"""The help of commands: options in panels, their names never cut off."""

import sys
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

_ARGUMENTS, _OPTIONS = "Arguments", "Options"  # panels of parameters that name no other


class HelpfulCommand(TyperCommand):
    """A command whose help gives an option's name all the room that it needs.

    typer's own table has columns for short names, for --no- names and for kinds of values. In a terminal of 80 columns
    they leave so little room that long names are cut off.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the usage, what the command does, and a panel for each group of options."""
        console = Console(file=sys.stdout, highlight=False, markup=False)
        console.print(f"{self.get_usage(ctx)}\n\n{self.help or ''}\n")
        for title, records in self._panels(ctx).items():
            table = Table.grid(padding=(0, 2))
            table.add_column(no_wrap=True, style="bold cyan")
            table.add_column()
            for names, words in records:
                table.add_row(Text(names), Text(words))
            console.print(Panel(table, title=title, title_align="left", border_style="dim"))

    def _panels(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """{title: [(names, help)]} of all parameters that are shown."""
        panels: dict[str, list[tuple[str, str]]] = {_ARGUMENTS: [], _OPTIONS: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:  # None where it is hidden
                default = _ARGUMENTS if parameter.param_type_name == "argument" else _OPTIONS
                title = getattr(parameter, "rich_help_panel", None) or default
                panels.setdefault(title, []).append(record)
        return {title: records for title, records in panels.items() if records}
