"""`python -m neo_tf`: the command `neo-tf`."""

from neo_tf.cli import main

if __name__ == "__main__":
    main()
