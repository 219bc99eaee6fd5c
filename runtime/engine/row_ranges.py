"""Which neighbouring rows of the KV cache a decode step runs: arithmetic on slot numbers."""


def row_ranges(running: list[int], held: list[int], rows: int, in_pairs: bool) -> list[tuple[int, int]]:
    """Ranges of neighbouring slots that cover all running ones; a range may hold idle slots, too.

    Args:
        running: The slots that run, in ascending order; at least one.
        held: Half-prefilled slots that must not be run along idly; no range holds one. There may be none where ranges
            are in pairs: an odd row between two of them has no partner.
        rows: The number of the cache's rows; an even one where ranges are in pairs.
        in_pairs: Whether a range should have an even number of rows; see Session.in_pairs.

    Returns:
        [(first slot, the slot after the last), ...], in ascending order.
    """
    if in_pairs:
        assert not held and rows % 2 == 0
        return [_even(running[0], running[-1] + 1, rows)]
    held = sorted(held)
    ranges = []
    first = running[0]
    for slot, following in zip(running, [*running[1:], None], strict=True):
        if following is None or any(slot < one < following for one in held):
            ranges.append((first, slot + 1))
            if following is not None:
                first = following
    return ranges


def _even(first: int, end: int, rows: int) -> tuple[int, int]:
    """The range, with one idle slot more where its number of slots is odd."""
    if (end - first) % 2 == 0:
        return first, end
    return (first, end + 1) if end < rows else (first - 1, end)
