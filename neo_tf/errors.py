"""The errors that a user can cause. Each message is one line: what is wrong, and where."""


class NeoTFError(Exception):
    """Anything that neo-tf refuses. The command line prints the message and exits with 1."""


class ConfigError(NeoTFError, ValueError):
    """A config that is incomplete, contradicts itself or its weights, or asks for what is not there."""


class CheckpointError(NeoTFError, ValueError):
    """A folder that is no checkpoint, or one that is damaged or incomplete."""


class OutputError(NeoTFError, OSError):
    """A destination that cannot be written."""


class RequestError(NeoTFError, ValueError):
    """A request for text that cannot be served: its prompt, or one of its arguments."""


class ProviderError(NeoTFError, RuntimeError):
    """An execution provider that was asked for and is not there."""


class EngineError(NeoTFError, RuntimeError):
    """A step that failed while a request was in it, or an engine that no longer runs."""


class MissingExtraError(NeoTFError, ImportError):
    """A part of neo-tf whose optional dependency is not installed."""


def one_line(error):
    """An error's message with its line breaks taken out."""
    return " ".join(str(error).split())


def first_line(error):
    """The first line of an error's message that says something; the error's kind where none does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
