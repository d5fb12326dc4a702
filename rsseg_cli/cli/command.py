"""Builds Typer commands from dataclasses of options."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
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
        """Return the parameters."""
        params = _without_types(super().get_params(ctx))
        params[-1].rich_help_panel = RUNNING
        return params


class Group(TyperGroup):
    """Typer group whose help shows no Python types."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
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
    """Return a function with one parameter per option, from which Typer builds a command.

    Args:
        run: The command; its docstring is the help. Its only parameter is annotated with a
            dataclass of options as described in `rsseg_cli.commands.options`.
    """
    (options,) = (kind for name, kind in get_type_hints(run).items() if name != "return")
    types = get_type_hints(options)
    parameters = [_parameter(field, types[field.name]) for field in _sorted_fields(options)]

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
    """Print JSON, or the fields of a dataclass as one JSON object, to stdout."""
    typer.echo(json.dumps(asdict(value) if is_dataclass(value) else value, indent=2))  # type: ignore[arg-type]


def _sorted_fields(options: type) -> list[Field[Any]]:
    """List arguments, then options by panel; fields of a class precede those that it inherits."""

    def panel_number(field: Field[Any]) -> int:
        panel = field.metadata["typer"].get("rich_help_panel")
        return PANELS.index(panel) if panel else -1

    by_name = {field.name: field for field in fields(options)}
    names = dict.fromkeys(name for cls in options.__mro__ for name in get_annotations(cls))
    return sorted((by_name[name] for name in names), key=panel_number)


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
        annotation=Annotated[kind, _typer_parameter(field, _value_type(kind))],
    )


def _typer_parameter(field: Field[Any], value_type: Any) -> Any:
    """Build the `typer.Option` or `typer.Argument` of a field."""
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
    """Return the type of a single value: `int` for `int | None` and for `list[int]`."""
    arguments = [argument for argument in get_args(kind) if argument is not NoneType]
    if get_origin(kind) is Literal or not arguments:
        return kind
    return _value_type(arguments[0])
