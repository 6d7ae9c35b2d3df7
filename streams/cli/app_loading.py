"""Loading the app that ``module:app`` on a command line names."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import ModuleType
from typing import TYPE_CHECKING

from streams.cli.command_errors import CommandFailed, UsageError, is_debugging, print_traceback

if TYPE_CHECKING:
    from streams.app import Streams


def load_app(target: str, url: str | None = None) -> Streams:
    """Import an app. The working directory is searched first.

    :param target: ``module:app``; both may have dots.
    :param url: the log to use instead of the app's own.
    :raises UsageError: it does not have this form.
    :raises CommandFailed: it cannot be imported: there is no such module, its import fails, or
        it has no such app.
    """
    from streams.app import Streams

    name, colon, attribute = target.partition(":")
    parts = name.split(".")
    if not colon or not attribute or not all(part.isidentifier() for part in parts):
        guess = name.removesuffix(".py").strip("./").replace("/", ".") or "shop"
        raise UsageError(f"{target!r}: an app is written as MODULE:APP, such as {guess}:app")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _import_module(name)
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            apps = _describe_apps_in(module, name)
            raise CommandFailed(f"{target}: {name} has no {attribute!r}; {apps}")
        found = getattr(found, part)
    if not isinstance(found, Streams):
        apps = _describe_apps_in(module, name)
        raise CommandFailed(
            f"{target} is of type {type(found).__name__}, not a Streams app; {apps}"
        )
    found.url_override = url
    return found


def app_and_topic(command: str, first: str, second: str | None) -> tuple[str | None, str]:
    """``[MODULE:APP] TOPIC`` on a command line: the app, if one was given, and the topic.

    :raises UsageError: only an app was given.
    """
    if second is not None:
        return first, second
    if ":" in first:
        raise UsageError(f"{first}: no topic given; write streams {command} {first} TOPIC")
    return None, first


def _describe_apps_in(module: ModuleType, name: str) -> str:
    from streams.app import Streams

    apps = [key for key, value in vars(module).items() if isinstance(value, Streams)]
    if not apps:
        return f"{module.__file__ or name} declares no app: app = Streams(...)"
    return f"it has {', '.join(f'{name}:{each}' for each in apps)}"


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and (name == missing or name.startswith(f"{missing}.")):
            where = f"looked in {os.getcwd()} and among the installed packages"
            raise CommandFailed(f"there is no module {missing!r} ({where})") from error
        raise CommandFailed(_import_failure(name, error)) from error
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise CommandFailed(f"{name} cannot be imported: {where}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise CommandFailed(_import_failure(name, error)) from error


def _import_failure(name: str, error: BaseException) -> str:
    """The text of an exception inside a module, and the last line of the user's code that led
    there."""
    from streams.errors import StreamsError
    from streams.text import error_text, one_line

    if is_debugging():
        print_traceback(error)
    package_dir = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and not frame.filename.startswith(package_dir)
    ]
    location = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    message = error_text(error)
    if not isinstance(error, StreamsError):
        message = f"{type(error).__name__}: {message}"
    return f"{name} cannot be imported: {one_line(message)}{location}"
