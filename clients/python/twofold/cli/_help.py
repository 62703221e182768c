"""Help pages in sections."""

from collections.abc import Iterable

import click

OPTIONS = "Options"


class SectionedGroup(click.Group):
    """Lists its subcommands in the order in which they were added, command groups after the other commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        """Return the names of the subcommands in the order in which they were added."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections "Commands" and "Command groups"."""
        groups = {name for name, command in self.commands.items() if isinstance(command, click.Group)}
        for title, names in (
            ("Commands", [name for name in self.list_commands(ctx) if name not in groups]),
            ("Command groups", [name for name in self.list_commands(ctx) if name in groups]),
        ):
            width = formatter.width - 8 - max(map(len, names), default=0)
            if rows := [(name, self.commands[name].get_short_help_str(width)) for name in names]:
                with formatter.section(title):
                    formatter.write_dl(rows)


class SectionedOption(click.Option):
    """An option that the help page lists under its own section title."""

    section = OPTIONS


class SectionedCommand(click.Command):
    """Lists its options by section: options of other classes than SectionedOption come under "Options"."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each title, in the order in which the titles first occur."""
        for title in dict.fromkeys(map(_section_of, self.get_params(ctx))):
            with formatter.section(title):
                formatter.write_dl(list(_rows(self.get_params(ctx), title, ctx)))


def _section_of(parameter: click.Parameter) -> str:
    return parameter.section if isinstance(parameter, SectionedOption) else OPTIONS


def _rows(parameters: Iterable[click.Parameter], title: str, ctx: click.Context) -> Iterable[tuple[str, str]]:
    for parameter in parameters:
        if _section_of(parameter) == title and (row := parameter.get_help_record(ctx)):
            yield row
