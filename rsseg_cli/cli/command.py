"""Builds Typer commands from dataclasses of options."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from types import GenericAlias, NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from rsseg_cli.commands.options import PANELS, RUNNING, Argument, Option, declared

T = TypeVar("T")

METAVARS: dict[Any, str] = {bool: "", Path: "PATH", int: "N", float: "X", str: "NAME"}
"""Placeholders of values in the help, by type."""


class Command(TyperCommand):
    """Typer command whose help shows no Python types and lists `--help` under "Running"."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, `--help` last."""
        params = _without_types(super().get_params(ctx))
        params[-1].rich_help_panel = RUNNING
        return params


class Group(TyperGroup):
    """Typer group whose help shows no Python types."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, `--help` last."""
        return _without_types(super().get_params(ctx))


def _without_types(params: list[Any]) -> list[Any]:
    """Remove the type that Typer prints beside flags and arguments."""
    for param in params:
        if isinstance(param, TyperArgument):
            param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
        elif param.is_flag:
            param.metavar = ""
    return params


def command(run: Callable[[T], None]) -> Callable[..., None]:
    """Return a function with one parameter an option, which Typer can turn into a command.

    Args:
        run: The command; its docstring is the help. Its only parameter is annotated with a
            dataclass of options as described in `rsseg_cli.commands.options`.
    """
    (options,) = (kind for name, kind in get_type_hints(run).items() if name != "return")
    declarations = declared(options)
    defaults = {field.name: field.default for field in fields(options)}
    by_panel = sorted(declarations, key=lambda name: _rank(declarations[name][1]))
    parameters = [_parameter(name, *declarations[name], defaults[name]) for name in by_panel]

    def call(**values: Any) -> None:
        for name, value in values.items():
            if _is_tuple(declarations[name][0]):
                values[name] = tuple(value or ())
        run(options(**values))

    call.__name__, call.__doc__ = run.__name__, run.__doc__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def print_json(value: Any) -> None:
    """Print one JSON object to stdout."""
    typer.echo(json.dumps(value, indent=2))


def _rank(option: Option) -> int:
    """Return the position of an option in the help: arguments first, then panel by panel."""
    return -1 if isinstance(option, Argument) else PANELS.index(option.panel)


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _parameter(name: str, kind: Any, option: Option, default: Any) -> inspect.Parameter:
    """Build the parameter of a Typer command for one field of an options class."""
    if _is_tuple(kind):
        kind = GenericAlias(list, get_args(kind)[:1])
        kind = kind if default is MISSING else kind | None
        default = default or None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind, _description(name, kind, option, default)],
    )


def _description(name: str, kind: Any, option: Option, default: Any) -> Any:
    """Build Typer's description of an option or argument."""
    shared: dict[str, Any] = {
        "help": option.help,
        "show_default": option.default or True,
        "min": option.minimum,
        "max": option.maximum,
        "envvar": option.envvar,
        "autocompletion": option.complete,
    }
    if isinstance(option, Argument):
        return typer.Argument(metavar=option.metavar or name.upper(), **shared)
    value_type = _value_type(kind)
    flag = option.name or f"--{name.replace('_', '-')}"
    if value_type is bool and default is not False:
        flag = f"{flag}/{flag.replace('--', '--no-')}"
    return typer.Option(
        *filter(None, (flag, option.short)),
        metavar=option.metavar or _placeholder(value_type),
        rich_help_panel=option.panel,
        **shared,
    )


def _placeholder(value_type: Any) -> str:
    if get_origin(value_type) is Literal:
        return "|".join(get_args(value_type))
    return METAVARS[value_type]


def _value_type(kind: Any) -> Any:
    """Return the type of one value: without None, and without the list around it."""
    arguments = [argument for argument in get_args(kind) if argument is not NoneType]
    if get_origin(kind) is Literal or not arguments:
        return kind
    return _value_type(arguments[0])
