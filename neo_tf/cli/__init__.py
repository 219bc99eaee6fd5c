"""The command line: one file a command. Nothing imports it."""

from neo_tf.cli.app import main

__all__ = ["main"]
