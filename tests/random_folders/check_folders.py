"""Draws folders at random, and compares neo-tf with transformers on each. `make random-folders` runs it."""

import argparse
import collections
import json
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

from draw_model import random_config, random_generation_config, write_weights
from draw_tokenizer import random_tokenizer_files
from judge_model import Refused, check_model, judged_copy
from judge_tokenizer import Difference, check_tokenizer


def check_folder(seed, parent, counts, tokenizer_alone=False):
    """Draws the folder of a seed, writes it as parent/model, and compares.

    Args:
        seed: The seed, from which all follows.
        parent: An empty folder.
        counts: A Counter of what is worth knowing about the run.
        tokenizer_alone: Whether only the tokenizer is drawn and compared.

    Raises:
        Difference: neo-tf and transformers differ.
        Refused: neo-tf refuses, in one line, what transformers takes.
    """
    draw = random.Random(seed)
    folder = parent / "model"
    folder.mkdir()
    files = random_tokenizer_files(draw)
    declared = {"tokenizer_class": files.pop("")} if "" in files else {}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    _write(folder / "config.json", {"model_type": "gpt_neo"} | declared)
    theirs = check_tokenizer(draw, folder)
    if theirs is None:
        counts["tokenizers that transformers refuses"] += 1
    elif not tokenizer_alone:
        n_vocab = max(theirs.get_vocab().values()) + 1 + draw.choice([0, 0, 3])
        if draw.random() < 0.05:
            n_vocab = max(n_vocab, 50257)  # with the token that ends texts by default
        config = random_config(draw, n_vocab) | declared
        is_read = write_weights(draw, folder, config)
        _write(folder / "config.json", config)
        settings = random_generation_config(draw, n_vocab)
        if settings is not None:
            _write(folder / "generation_config.json", settings)
        check_model(draw, folder, folder if is_read else judged_copy(folder), counts)


def _write(path, value):
    path.write_text(json.dumps(value))


def check_folders(seeds, tokenizer_alone=False, keep=None, report=print):
    """Checks the folders of several seeds.

    Args:
        seeds: The seeds.
        tokenizer_alone: See check_folder.
        keep: A folder in which each drawn folder is left, under its seed; None where they are removed.
        report: A function of a line of text, called for each difference.

    Returns:
        (the number of differences, a Counter).
    """
    differences, counts = 0, collections.Counter()
    for seed in seeds:
        with tempfile.TemporaryDirectory() as temporary:
            parent = keep / str(seed) if keep else Path(temporary)
            parent.mkdir(parents=True, exist_ok=True)
            os.environ["NEO_TF_CACHE"] = str(parent / "cache")
            try:
                check_folder(seed, parent, counts, tokenizer_alone)
            except Difference as error:
                differences += 1
                report(f"seed {seed}: {error}")
            except Refused as error:
                differences += 1
                report(f"seed {seed}: refused: {error}")
            except Exception:  # neither may raise anything else
                differences += 1
                report(f"seed {seed}: {traceback.format_exc()}")
    return differences, counts


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", type=int, default=200, help="the number of folders")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed; the others' follow")
    parser.add_argument("--keep", type=Path, help="a folder that each drawn folder is left in, under its seed")
    parser.add_argument("--tokenizer-alone", action="store_true", help="draw and compare only tokenizers")
    options = parser.parse_args()
    import torch
    import transformers

    transformers.logging.set_verbosity(50)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    begin = time.monotonic()
    seeds = range(options.seed, options.seed + options.folders)
    differences, counts = check_folders(
        seeds, options.tokenizer_alone, options.keep, lambda line: print(line, flush=True)
    )
    for what, number in sorted(counts.items()):
        print(f"{number:8} {what}")
    print(f"{options.folders} folders, {differences} with a difference, {time.monotonic() - begin:.0f} s")
    return int(differences > 0)


if __name__ == "__main__":
    sys.exit(main())
