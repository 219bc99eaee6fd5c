"""`python -m neo_tf.cli`."""

from neo_tf.cli.app import main

main()
