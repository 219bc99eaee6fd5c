import pytest

from neo_tf.errors import RequestError
from neo_tf.sizes import bytes_of, readable_bytes


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (5.3e9, "5.3 GB"),
        (2.5e12, "2500.0 GB"),
    ],
)
def test_bytes_are_written_in_powers_of_1000(size, text):
    assert readable_bytes(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("7", 7), ("20B", 20), ("1.5 GB", 1_500_000_000), ("500MB", 500_000_000), ("3k", 3000), (" 2TB ", 2 * 10**12)],
)
def test_bytes_are_read_with_their_unit(text, size):
    assert bytes_of("cache", text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 XB", "1,5GB", "1e3"])
def test_what_is_no_size_is_refused_by_name(text):
    with pytest.raises(RequestError, match="cache must be a size such as 2GB"):
        bytes_of("cache", text)
