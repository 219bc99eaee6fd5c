"""The report of the GPU suite: report.json with everything, report.md for people."""

import json

# What is asked of an H100 or H200: one sequence within this many times the time to read the weights, ...
READS = 1.6
READ_SIZES = ("1.3B", "2.7B")
READ_PRECISIONS = ("fp16", "int8")
PEER_RATIO = 3.0  # ... as many times transformers' tokens a second at each size, ...
BATCH = "32"
BATCH_RATIO = 20.0  # ... and a batch of 32 of this model as many times one sequence's throughput.
BATCH_SIZE = "2.7B"


def speeds(report):
    """{size: the figures of measure.py} of the steps that measured them."""
    prefix = "speed at "
    steps = {step["name"].removeprefix(prefix): step for step in report["steps"] if step["name"].startswith(prefix)}
    return {size: step.get("figures", {}) for size, step in steps.items()}


def goals(report):
    """The goals of speed: [{"goal", "found", "reached"}], the last two None where nothing was measured."""
    measured = speeds(report)
    found = []

    def add(goal, value, reached):
        found.append({"goal": goal, "found": value, "reached": None if value is None else reached(value)})

    for size in READ_SIZES:
        for precision in READ_PRECISIONS:
            times = measured.get(size, {}).get(f"neo-tf {precision}", {}).get("times_the_read")
            goal = f"{size} in {precision}: a token within {READS} times the time to read the weights"
            add(goal, times, lambda value: value <= READS)
    for size, figures in measured.items():
        ours = figures.get("neo-tf fp16", {}).get("tokens_per_s")
        theirs = figures.get("transformers fp16", {}).get("tokens_per_s")
        ratio = ours / theirs if ours and theirs else None
        add(f"{size}: at least {PEER_RATIO:g} times transformers' tokens/s", ratio, lambda value: value >= PEER_RATIO)
    batches = measured.get(BATCH_SIZE, {}).get("neo-tf fp16", {}).get("batches", {})
    ratio = batches[BATCH] / batches["1"] if BATCH in batches and batches.get("1") else None
    goal = f"{BATCH_SIZE} in fp16: a batch of {BATCH} at least {BATCH_RATIO:g} times one sequence"
    add(goal, ratio, lambda value: value >= BATCH_RATIO)
    return found


def write(report, folder):
    """Writes report.json and report.md.

    Args:
        report: {"passed", "seconds", "machine", "steps"}; see suite.py.
        folder: An existing folder.
    """
    report = report | {"goals": goals(report)}
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")


def markdown(report):
    """The report for people."""
    failed = [step for step in report["steps"] if step["outcome"] != "passed"]
    verdict = "passed" if report["passed"] else f"FAILED: {', '.join(step['name'] for step in failed)}"
    lines = ["# neo-tf on a GPU", "", f"{verdict}, after {report['seconds']:.0f} seconds.", ""]
    lines += [f"- {name}: {value}" for name, value in report["machine"].items()]
    lines += ["", "| step | outcome | checks | seconds | |", "|---|---|---|---|---|"]
    for step in report["steps"]:
        checks = step.get("checks", "")
        lines.append(f"| {step['name']} | {step['outcome']} | {checks} | {step['seconds']:.0f} | {step['about']} |")
    lines += _speed_table(report)
    lines += ["", "| goal on an H100 or H200 | found | |", "|---|---|---|"]
    for goal in report["goals"]:
        found = "not measured" if goal["found"] is None else f"{goal['found']:.2f}"
        reached = {None: "", True: "reached", False: "missed"}[goal["reached"]]
        lines.append(f"| {goal['goal']} | {found} | {reached} |")
    for step in failed:
        lines += ["", f"## {step['name']}", "", "```", *step.get("failures", []), *step["last_lines"], "```"]
    notes = [note for step in report["steps"] for note in step.get("notes", [])]
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _speed_table(report):
    """The rows of all systems at all sizes: one sequence, batches, and the share of the memory's speed."""
    lines = ["", "| | tokens/s | batch 8 | batch 32 | first token | times the read |", "|---|---|---|---|---|---|"]
    for size, figures in speeds(report).items():
        for system, found in figures.items():
            if not isinstance(found, dict):
                continue
            batches = found["batches"]
            cells = [f"{found['tokens_per_s']:.1f}", *(f"{batches[size]:.0f}" for size in ("8", BATCH))]
            first = found.get("first_token_ms")
            times = found.get("times_the_read")
            cells.append("" if first is None else f"{first:.1f} ms")
            cells.append("" if times is None else f"{times:.2f}")
            lines.append(f"| {size}, {system} | {' | '.join(cells)} |")
    return lines if len(lines) > 3 else []
