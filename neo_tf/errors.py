"""The errors that a user can cause. Each message is one line that says what is wrong, and where."""


class NeoTFError(Exception):
    """The base of all errors that neo-tf raises on purpose. The command line prints the message and exits with 1."""


class ConfigError(NeoTFError, ValueError):
    """A config is incomplete, contradicts itself or its weights, or asks for something that is not supported."""


class CheckpointError(NeoTFError, ValueError):
    """A folder is not a checkpoint, or the checkpoint in it is damaged or incomplete."""


class DataError(NeoTFError, ValueError):
    """Training data is damaged, is missing, or does not fit the model."""


class TrainingError(NeoTFError, ArithmeticError):
    """A training cannot go on: its loss is not a number."""


class OutputError(NeoTFError, OSError):
    """A destination cannot be written."""


class RequestError(NeoTFError, ValueError):
    """A request for text cannot be served because of its prompt or one of its arguments."""


class ProviderError(NeoTFError, RuntimeError):
    """An execution provider that the user named is not available."""


class EngineError(NeoTFError, RuntimeError):
    """A step failed while a request was in it, or the engine no longer runs."""


class MissingExtraError(NeoTFError, ImportError):
    """A part of neo-tf needs an optional dependency that is not installed."""

    @classmethod
    def of(cls, need: str, error: ImportError, extra: str) -> "MissingExtraError":
        """The error where an import has failed.

        Args:
            need: What needs what, such as "--plot needs matplotlib".
            error: Why it cannot be imported.
            extra: The extra of neo-tf that installs it.
        """
        return cls(f"{need} ({error}): install it with `pip install 'neo-tf[{extra}]'`")


def one_line(error: BaseException) -> str:
    """An error's message with its line breaks replaced by spaces."""
    return " ".join(str(error).split())


def first_line(error: object) -> str:
    """The first line of an error's message that is not empty; the name of the error's type where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
