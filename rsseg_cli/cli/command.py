"""Builds Typer commands from dataclasses of options."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from inspect import get_annotations
from pathlib import Path
from types import GenericAlias, NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from rsseg_cli.commands.options import PANELS, RUNNING

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
    types = get_type_hints(options)
    parameters = [_parameter(field, types[field.name]) for field in _in_order(options)]

    def call(**values: Any) -> None:
        for name, value in values.items():
            if get_origin(types[name]) is tuple:
                values[name] = tuple(value or ())
        run(options(**values))

    call.__name__, call.__doc__ = run.__name__, run.__doc__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def print_json(value: Any) -> None:
    """Print one JSON object to stdout."""
    typer.echo(json.dumps(value, indent=2))


def _in_order(options: type) -> list[Field[Any]]:
    """List the fields panel by panel, a class's own before those that it inherits."""
    by_name = {field.name: field for field in fields(options)}
    own_first = dict.fromkeys(name for cls in options.__mro__ for name in get_annotations(cls))
    return sorted((by_name[name] for name in own_first), key=_panel_number)


def _panel_number(field: Field[Any]) -> int:
    panel = field.metadata["typer"].get("rich_help_panel")
    return PANELS.index(panel) if panel else -1


def _parameter(field: Field[Any], kind: Any) -> inspect.Parameter:
    """Build the parameter of a Typer command for one field of a class of options."""
    is_required, default = field.default is MISSING, field.default
    if get_origin(kind) is tuple:
        kind = GenericAlias(list, get_args(kind)[:1])
        kind, default = (kind if is_required else kind | None), default or None
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if is_required else default,
        annotation=Annotated[kind, _description(field, _value_type(kind))],
    )


def _description(field: Field[Any], value_type: Any) -> Any:
    """Build Typer's description of an option or argument."""
    if "flags" not in field.metadata:
        return typer.Argument(**{"metavar": field.name.upper()} | field.metadata["typer"])
    flags = field.metadata["flags"]
    if not any(flag.startswith("--") for flag in flags):
        flags = (f"--{field.name.replace('_', '-')}", *flags)
    if value_type is bool and field.default is not False:
        flags = tuple(f"{flag}/{flag.replace('--', '--no-')}" for flag in flags)
    choices = get_args(value_type)
    placeholder = "|".join(choices) if choices else METAVARS[value_type]
    return typer.Option(*flags, **{"metavar": placeholder} | field.metadata["typer"])


def _value_type(kind: Any) -> Any:
    """Return the type of one value: without None, and without the list around it."""
    arguments = [argument for argument in get_args(kind) if argument is not NoneType]
    if get_origin(kind) is Literal or not arguments:
        return kind
    return _value_type(arguments[0])
