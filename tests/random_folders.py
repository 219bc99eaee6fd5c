"""Draws folders at random and compares neo-tf with transformers on each: `python tests/random_folders.py --help`."""

import argparse
import collections
import json
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from folder_judge import check_tokenizer
from random_tokenizers import random_tokenizer_files


def check_folder(seed, folder):
    """Draws the folder of a seed, writes it and compares.

    Raises:
        Difference: neo-tf and transformers differ.
    """
    draw = random.Random(seed)
    files = random_tokenizer_files(draw)
    config = {"model_type": "gpt_neo"} | ({"tokenizer_class": files.pop("")} if "" in files else {})
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(config))
    check_tokenizer(draw, folder)


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", type=int, default=200, help="the number of folders")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed; the others' follow")
    parser.add_argument("--keep", type=Path, help="a folder that each drawn folder is left in")
    options = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity(50)
    begin, kinds = time.monotonic(), collections.Counter()
    for seed in range(options.seed, options.seed + options.folders):
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.keep / str(seed) if options.keep else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                check_folder(seed, folder)
            except Exception as error:
                kinds[type(error).__name__] += 1
                shown = str(error) if type(error).__name__ == "Difference" else traceback.format_exc()
                print(f"seed {seed}: {shown[:1500]}", flush=True)
    print(f"{options.folders} folders, {sum(kinds.values())} with a difference, {time.monotonic() - begin:.0f} s")
    return int(bool(kinds))


if __name__ == "__main__":
    sys.exit(main())
