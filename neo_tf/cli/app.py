"""The `neo-tf` command: its subcommands, and how errors end it."""

import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

import neo_tf
from neo_tf.cli.benchmark import benchmark
from neo_tf.cli.console import never_fail_to_encode
from neo_tf.cli.convert import convert
from neo_tf.cli.data import app as data
from neo_tf.cli.export import export
from neo_tf.cli.generate import generate
from neo_tf.cli.help import HelpfulCommand
from neo_tf.cli.info import info
from neo_tf.cli.init import init
from neo_tf.cli.serve import serve
from neo_tf.cli.train import train
from neo_tf.cli.verify import verify
from neo_tf.errors import NeoTFError, OutputError, one_line

app = typer.Typer(
    help="GPT-Neo from a Mesh-TensorFlow checkpoint to production decoding on ONNX Runtime.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (convert, export, verify, generate, serve, benchmark, init, train, info):
    app.command(cls=HelpfulCommand)(_command)
app.add_typer(data, name="data")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        print(f"neo-tf {neo_tf.__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Runs the command, and exits.

    The exit status is 1 where neo-tf refuses something, which is one line on standard error, and 2 for wrong usage.
    """
    never_fail_to_encode()
    # SIGTERM ends the command like Ctrl-C does: what is half written is removed on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        status = app(standalone_mode=False)
    except NeoTFError as error:
        _fail(error)
    except (KeyboardInterrupt, typer.Abort):
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of the pipe has closed it
        sys.stderr.close()
        raise SystemExit(1) from None
    except OSError as error:
        _fail(OutputError(f"{error.filename or 'file'}: {error.strerror or error}"))
    except MemoryError:
        _fail(NeoTFError("not enough memory"))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _fail_usage(error)
    raise SystemExit(status if isinstance(status, int) else 0)


def _fail(error: NeoTFError) -> NoReturn:
    print(f"error: {one_line(error)}", file=sys.stderr)
    raise SystemExit(1) from None


def _fail_usage(error: Any) -> NoReturn:
    """Ends the command for an error of typer, which keeps their classes to itself."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        message = " ".join(error.format_message().split()).replace("Value error, ", "")
        print(f"error: {message} (see --help)", file=sys.stderr)
    raise SystemExit(2) from None
