"""The documentation names what is there: files in the layout, links, commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
CODE = [path for top in ("neo_tf", "export", "runtime") for path in sorted((ROOT / top).rglob("*.py"))]


def test_the_layout_has_a_line_for_each_file_and_no_other():
    """CONTRIBUTING.md: a heading `folder/`, and a table of its files."""
    listed, folder = set(), None
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines():
        if heading := re.match(r"`([\w/]+)/`: ", line):
            folder = heading[1]
        elif (row := re.match(r"\| `(\w+\.py)` \| \S", line)) and folder:
            listed.add(f"{folder}/{row[1]}")
    # A package's own __init__.py says nothing that its heading does not.
    files = {
        str(path.relative_to(ROOT)) for path in CODE if not path.name.startswith("__") or path.parent.name == "neo_tf"
    }
    assert listed == files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
    # Paths of the repository in backquotes, such as `runtime/pipeline.py`.
    for path in re.findall(r"`((?:neo_tf|export|runtime|tests|benchmarks|docs|requirements)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sections_that_are_linked_are_there(page):
    for target, section in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
        other = page.parent / target if target else page
        headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert section in anchors, f"{target}#{section}"
