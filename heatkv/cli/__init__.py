"""The command line: ``heatkv models | generate | calibrate | plan | compare | bench | app`` (``python -m heatkv`` too).

A bad argument or file ends with exit code 2 and one line on stderr. With ``--json``, stdout holds one
JSON object and nothing else; progress goes to stderr.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec

from heatkv.cli.arguments import say
from heatkv.cli.parser import make_parser
from heatkv.files import one_line, program_root
from heatkv.threads import keep_to_own_cores


def start_app(arguments: Sequence[str]) -> int:
    """The explorer, which a checkout has beside the library and a wheel inside it."""
    missing = [name for name in ("gradio", "plotly") if find_spec(name) is None]
    if missing:
        say(f"error: the app needs {' and '.join(missing)}: pip install 'heatkv[app]'")
        return 2
    sys.path.insert(0, str(program_root()))
    from app.__main__ import main as serve

    serve(list(arguments), program="heatkv app")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["app"]:  # it has a parser of its own, and imports what no other command needs
            return start_app(argv[1:])
        arguments = make_parser().parse_args(argv)
        arguments.typed = shlex.join(["heatkv", *argv])
    except SystemExit as end:
        return int(end.code or 0)
    keep_to_own_cores()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, beside the one line that says what is wrong
    try:
        if sys.stdout is None:
            raise OSError("the standard output is closed")
        report = arguments.run(arguments)
        if arguments.json:
            print(json.dumps(report))
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("cancelled")
        return 130
    except Exception as error:
        forget_output()
        say(f"error: {one_line(words_for(error))}")
        return 2 if is_foreseen(error) else 1
    return 0


def is_foreseen(error: Exception) -> bool:
    """Whether an error is of the arguments, a file or the machine; anything else is a mistake in this program."""
    return isinstance(error, (ValueError, OSError, MemoryError)) or out_of_memory(error)


def out_of_memory(error: Exception) -> bool:
    """PyTorch says so with errors of several kinds."""
    text = str(error)
    return isinstance(error, RuntimeError) and ("allocate memory" in text or "out of memory" in text)


def words_for(error: Exception) -> str:
    """One line on an error for people."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError) or out_of_memory(error):
        return "there is not enough memory for this: choose a smaller batch, size or model"
    if not is_foreseen(error):
        return f"this program made a mistake ({type(error).__name__}: {error}); please report it with the command"
    return str(error) or type(error).__name__


def forget_output() -> None:
    """Drop what could not be written, which Python would try again, and report, at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
