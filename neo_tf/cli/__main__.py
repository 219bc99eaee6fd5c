"""`python -m neo_tf.cli`."""

from neo_tf.cli.app import main

if __name__ == "__main__":
    main()
