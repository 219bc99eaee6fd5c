"""Which neighbouring rows of the KV cache a decode step runs: arithmetic on slot numbers."""


def row_ranges(running: list[int], held: list[int], rows: int, in_pairs: bool) -> list[tuple[int, int]]:
    """Ranges of neighbouring slots that cover all running ones; a range may hold idle slots, too.

    Args:
        running: The slots that run, in ascending order; at least one.
        held: Half-prefilled slots that must not be run along idly; no range holds one.
        rows: The number of the cache's rows.
        in_pairs: Whether a range should have an even number of rows; see Session.in_pairs.

    Returns:
        [(first slot, the slot after the last), ...], in ascending order.
    """
    held = sorted(held)
    ranges = []
    first = running[0]
    for slot, following in zip(running, [*running[1:], None], strict=True):
        if following is None or any(slot < one < following for one in held):
            end = slot + 1
            ranges.append(_even(first, end, held, rows) if in_pairs else (first, end))
            if following is not None:
                first = following
    return ranges


def _even(first: int, end: int, held: list[int], rows: int) -> tuple[int, int]:
    """The range, with one idle slot more where its number of slots is odd."""
    if (end - first) % 2 == 0:
        return first, end
    if end < rows and end not in held:
        return first, end + 1
    if first > 0 and first - 1 not in held:
        return first - 1, end
    # A slot between two half-prefilled ones: its last odd row is rounded otherwise.
    return first, end
