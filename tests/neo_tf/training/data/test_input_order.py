"""The order in which records are read: the original's own batches judge it. And what is wrong is told in one line."""

import itertools
import json
import logging

import numpy as np
import pytest
from checkpoint_helpers import cut_short, flip_byte
from conftest import FIXTURES

from neo_tf.errors import ConfigError, DataError
from neo_tf.training.data.documents import DocumentSet, document_batches
from neo_tf.training.data.example import encode_example
from neo_tf.training.data.files import find_files, place_of, training_order
from neo_tf.training.data.records import data_errors
from neo_tf.training.data.sequential import evaluation_batches, training_batches
from neo_tf.training.data.tfrecord import frame, read_token_ids

pytest.importorskip("google_crc32c", reason="the tests of training data need the extra data")

FOLDER = FIXTURES / "training-data" / "input-order"
DATA = FOLDER / "iodata"
GOLDEN = json.loads((FOLDER / "report.json").read_text())["deterministic"]
PATHS = {
    "a": [DATA / "a/*"],
    "a unshuffled": [DATA / "a/*"],
    "a seed7": [DATA / "a/*"],
    "a+b": [DATA / "a/*", DATA / "b/*"],
    "nocount": [DATA / "nocount/*"],
    "exact-file-boundary": [DATA / "b/*"],
}


def batches(dataset, count):
    """The first batches, as numpy arrays."""
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


def firsts(dataset, count):
    """The first token id of each row of the first batches."""
    return [inputs[:, 0].tolist() for inputs, _ in batches(dataset, count)]


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(frame(encode_example(record)) for record in records))
    return path


# ---- sequential_input


STEPS = [name for name in GOLDEN if " step" in name]
# Each rule once in TensorFlow: shuffled files, going on in a file, in a later epoch, at a border, without counts.
IN_TENSORFLOW = ("a step0", "a step30", "a seed7 step0", "a+b step9", "nocount step3", "exact-file-boundary step1")


def options(case):
    """(paths, step, seed, whether files are shuffled) of a case of the golden data."""
    name, step = case.rsplit(" step", 1)
    shuffled = name not in ("a unshuffled", "exact-file-boundary")
    return PATHS[name], int(step), 7 if name == "a seed7" else 1, shuffled


@pytest.mark.parametrize("case", IN_TENSORFLOW)
def test_batches_come_in_the_originals_order(case):
    paths, step, seed, shuffled = options(case)
    dataset = training_batches(
        paths, 4, 4, first_step=step, seed=seed, shuffle_input_filenames=shuffled, n_vocab=80_000
    )
    assert firsts(dataset, len(GOLDEN[case])) == GOLDEN[case]


@pytest.mark.parametrize("case", STEPS)
def test_files_come_in_the_originals_order_and_a_run_goes_on_in_the_right_place(case):
    paths, step, seed, shuffled = options(case)
    files = training_order(find_files(paths), seed, shuffled)
    file, record = place_of(files, step * 4)
    read = itertools.islice(itertools.cycle(files), file, None)
    ids = (int(token_ids[0]) for path in read for token_ids in read_token_ids(path))
    expected = [first for batch in GOLDEN[case] for first in batch]
    assert list(itertools.islice(ids, record, record + len(expected))) == expected


def test_a_batch_is_int32_and_its_labels_are_one_token_further(tmp_path):
    write(tmp_path / "x_0_4.tfrecords", *(np.arange(7) + 10 * number for number in range(4)))
    ((inputs, labels),) = batches(training_batches([tmp_path], 4, 4), 1)
    assert inputs.dtype == labels.dtype == np.int32
    assert inputs[1].tolist() == [10, 11, 12, 13] and labels[1].tolist() == [11, 12, 13, 14]  # 7 tokens are cut


def test_going_on_many_epochs_later_is_where_a_straight_run_is():
    files = [str(DATA / f"b/beta_{name}.tfrecords") for name in ("0_4", "1_3", "2_6")]
    straight = [(index, record) for index, count in enumerate((4, 3, 6)) for record in range(count)] * 3
    assert [place_of(files, read) for read in range(len(straight))] == straight


def test_evaluation_reads_in_natural_order_and_the_originals_way_draws_files():
    calm = firsts(evaluation_batches([DATA / "b/*"], 4, 4), 4)
    assert calm == GOLDEN["exact-file-boundary step0"][:4]
    for _ in range(3):
        drawn = itertools.chain(*firsts(evaluation_batches([DATA / "b/*"], 4, 4, shuffle=True), 26))
        starts = [first for first in drawn if first % 1000 == 0]
        assert {*starts} == {50000, 51000, 52000}
        # Whole files in any order; some file comes again before another has come: the list is repeated first.
        if any(len({*starts[index : index + 3]}) < 3 for index in range(0, len(starts) - 3, 3)):
            return
    pytest.fail("the files came in whole rounds three times: they are not drawn from a repeated list")


# ---- generic_text


@pytest.mark.parametrize("datatype", ["documents_random", "documents_fixed"])
def test_documents_are_the_originals_with_the_same_seed(datatype):
    dataset = document_batches([DocumentSet([DATA / "docs/*"], 4, datatype)], 4, 4, eos_id=9999, seed=3)
    found = [
        {"first_ids": inputs[:, 0].tolist(), "x0": inputs[0].tolist(), "y0": labels[0].tolist()}
        for inputs, labels in batches(dataset, 3)
    ]
    assert found == GOLDEN[f"generic {datatype} seed3"]


def test_documents_can_go_on_at_a_step_with_a_seed(tmp_path):
    sets = [DocumentSet([DATA / "docs/*"], 4, "documents_random")]
    straight = firsts(document_batches(sets, 4, 4, eos_id=9999, seed=3), 5)
    assert firsts(document_batches(sets, 4, 4, eos_id=9999, seed=3, first_step=3), 2) == straight[3:]
    with pytest.raises(ConfigError, match="with a seed"):
        document_batches(sets, 4, 4, eos_id=9999, first_step=3)


def test_documents_are_mixed_by_weight(tmp_path):
    low = write(tmp_path / "low.tfrecords", *[[1] * 5] * 3)
    high = write(tmp_path / "high.tfrecords", *[[2] * 5] * 3)
    sets = [DocumentSet([low], 1, "documents_fixed", 1.0), DocumentSet([high], 1, "documents_fixed", 3.0)]
    rows = np.concatenate([inputs for inputs, _ in batches(document_batches(sets, 4, 50, eos_id=0, seed=1), 8)])
    assert 0.68 < (rows[:, 0] == 2).mean() < 0.82


def test_documents_are_drawn_from_a_thousand_groups(tmp_path):
    path = write(tmp_path / "many.tfrecords", *([number] * 5 for number in range(3000)))
    dataset = document_batches([DocumentSet([path], 2, "documents_fixed")], 4, 50, eos_id=0, seed=1)
    ((drawn,),) = [firsts(dataset, 1)]
    assert 1500 < max(drawn) < 2000 + 2 * len(drawn)


def test_what_crashes_in_generic_text_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"'chunks': the original's generic_text crashes .*sequential_input"):
        DocumentSet(["x"], 1, "chunks")
    for stitch, weight in ((0, 1.0), (1.5, 1.0), (1, 0.0), (1, float("nan"))):
        with pytest.raises(ConfigError):
            DocumentSet(["x"], stitch, "documents_fixed", weight)


def test_documents_that_are_too_short_or_too_few_are_told():
    path = DATA / "docs/docs_0_20.tfrecords"
    for datatype, needed in (("documents_random", 31), ("documents_fixed", 30)):
        dataset = document_batches([DocumentSet([path], 2, datatype)], 29, 4, eos_id=0, seed=3)
        said = rf"docs_0_20\.tfrecords: record \d+ and the 1 .* needs {needed}.*stitch"
        with pytest.raises(DataError, match=said), data_errors([str(path)]):
            batches(dataset, 9)
    with pytest.raises(DataError, match="20 documents in all files together, but stitch is 21"):
        document_batches([DocumentSet([path], 21, "documents_fixed")], 4, 4, eos_id=0)


# ---- what is wrong


def test_globs_that_name_nothing_are_told(tmp_path):
    for make in (training_batches, evaluation_batches):
        with pytest.raises(DataError, match=r"none\*: no tfrecord files"):
            make([DATA / "a/*", tmp_path / "none*"], 4, 4)
    write(tmp_path / "empty_0_0.tfrecords")
    with pytest.raises(DataError, match="no records"):  # TensorFlow would look for one for ever
        training_batches([tmp_path], 4, 4)
    with pytest.raises(DataError, match="no tfrecord files"):
        find_files([])


def test_a_foreign_id_is_told_with_file_and_record(tmp_path):
    tmp_path = tmp_path / "it's é"
    write(tmp_path / "a_0_3.tfrecords", [1] * 5, [2] * 5, [3, 3, 99, 3, 3])
    write(tmp_path / "b_1_1.tfrecords", [-1] * 5)
    for path, said in (("a*", "record 2 has the id 99, but the model's vocabulary has 99 ids"), ("b*", "the id -1")):
        files = find_files([tmp_path / path])
        place = rf"/it's é/{path[0]}_\d_\d\.tfrecords: "
        with pytest.raises(DataError, match=f"{place}.*{said}") as caught, data_errors(files):
            batches(training_batches(files, 4, 1, n_vocab=99), 3)
        assert "\n" not in str(caught.value) and "node" not in str(caught.value)
    assert len(batches(training_batches([tmp_path / "a*"], 4, 1, n_vocab=100), 3)) == 3


def test_a_short_record_is_told_at_once_or_when_it_comes(tmp_path):
    write(tmp_path / "a_0_2.tfrecords", [1] * 5, [2] * 4)
    with pytest.raises(DataError, match=r"a_0_2\.tfrecords: record 0 has 5 tokens, but n_ctx \+ 1 = 6"):
        training_batches([tmp_path], 5, 1)
    said = r"a_0_2\.tfrecords: record 1 has 4 tokens, but n_ctx \+ 1 = 5"
    with pytest.raises(DataError, match=said), data_errors([]):
        batches(training_batches([tmp_path], 4, 1), 2)


@pytest.mark.parametrize("damage", [lambda path: cut_short(path, -3), lambda path: flip_byte(path, 60)])
def test_a_damaged_file_is_named_with_its_record(tmp_path, damage):
    write(tmp_path / "a_0_2.tfrecords", [1] * 5, [2] * 5)
    broken = write(tmp_path / "b_1_2.tfrecords", [1] * 5, [2] * 5)
    damage(broken)
    files = find_files([tmp_path])
    with pytest.raises(DataError, match=r"b_1_2\.tfrecords: .*record 1"), data_errors(files):
        batches(training_batches(files, 4, 1, check_counts=False), 4)
    cut_short(broken, 10)
    with pytest.raises(DataError, match=r"b_1_2\.tfrecords: .*record 0"):
        training_batches(files, 4, 1)


def test_a_wrong_count_in_a_name_is_told_and_no_run_goes_on_over_it(tmp_path, caplog):
    write(tmp_path / "a_0_3.tfrecords", [1] * 5, [2] * 5)
    write(tmp_path / "b_1_1.tfrecords", [3] * 5)
    with caplog.at_level(logging.WARNING, "neo_tf"):
        training_batches([tmp_path], 4, 1, shuffle_input_filenames=False)
    assert "a_0_3.tfrecords: its name tells 3 records, but it holds 2" in caplog.text
    with pytest.raises(DataError, match=r"a_0_3\.tfrecords: holds 2 records, but its name tells 3.*_2\.tfrecords"):
        training_batches([tmp_path], 4, 1, first_step=2, shuffle_input_filenames=False)
    # The original goes on as if nothing were wrong, one record too late.
    found = training_batches([tmp_path], 4, 1, first_step=2, shuffle_input_filenames=False, check_counts=False)
    assert firsts(found, 2) == [[3], [1]]
    write(tmp_path / "n/x.tfrecords", [1] * 5, [2] * 5)
    write(tmp_path / "n/y.tfrecords", [3] * 5)
    with pytest.raises(DataError, match=r"y\.tfrecords: holds 1 records, but like the first file it should have 2"):
        training_batches([tmp_path / "n"], 4, 1, first_step=3, shuffle_input_filenames=False)
