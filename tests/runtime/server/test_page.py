"""The page in a browser, before the server itself with the demo model."""

import json
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra server")
from page_helpers import browser_path, chromium, listening, wait_for

from neo_tf.runtime.pipeline import TextGenerationPipeline
from neo_tf.runtime.server.api_keys import ApiKeys
from neo_tf.runtime.server.app import create_app
from neo_tf.runtime.server.serving import ServerOptions, Serving

browser_path()
from playwright.sync_api import expect  # noqa: E402

PROMPT = "def read_lines(path):"
KEY = "a key of the tests"
NAME = "demo-model"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def serve(folder, keys=None):
    """A server of the demo model, whose steps can be made slow: .address, .serving, .pause (seconds a step)."""
    pipeline = TextGenerationPipeline(folder, batch_size=4, defaults={})
    serving = Serving(pipeline, ServerOptions(names=(NAME,), keys=keys))
    found = SimpleNamespace(serving=serving, pause=0.0)
    step = pipeline.engine.step

    def slow_step():
        time.sleep(found.pause)
        return step()

    pipeline.engine.step = slow_step
    return found


@pytest.fixture(scope="module")
def server(demo_folder):
    found = serve(demo_folder)
    with listening(create_app(found.serving)) as found.address:
        yield found


@pytest.fixture(scope="module")
def locked(demo_folder):
    """A server that asks for a key."""
    found = serve(demo_folder, ApiKeys([KEY]))
    with listening(create_app(found.serving)) as found.address:
        yield found


@pytest.fixture
def context(browser):
    """A browser's profile. What the pages ask for must be of this machine, and their code must not fail."""
    found = browser.new_context(accept_downloads=True, permissions=["clipboard-read", "clipboard-write"])
    requests, faults = [], []
    found.on("request", lambda request: requests.append(request.url))
    found.on("weberror", lambda error: faults.append(str(error.error)))
    yield found
    found.close()
    assert [url for url in requests if not url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:"))] == []
    assert faults == []


@pytest.fixture
def page(context, server):
    server.pause = 0.0
    opened = context.new_page()
    opened.goto(server.address)
    expect(opened.locator("#model option")).to_have_text(NAME)
    opened.fill("#prompt", PROMPT)
    yield opened
    opened.close()
    wait_for(lambda: server.serving.admission.active == 0)


def generate(page, count=2, tokens=40, seed=7):
    """Generates samples to their ends; their texts."""
    page.fill("#samples-count", str(count))
    page.fill("#max_tokens", str(tokens))
    page.fill("#seed", "" if seed is None else str(seed))
    page.click("#generate")
    expect(page.locator(".sample[data-state=done]")).to_have_count(count, timeout=20_000)
    return texts(page)


def texts(page):
    return page.locator(".sample .written").evaluate_all("all => all.map((each) => each.textContent)")


def complete(server, **body):
    """A completion as any other client gets it."""
    answer = httpx.post(f"{server.address}v1/completions", json={"model": NAME, "prompt": PROMPT, **body}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


SETTINGS = {"max_tokens": 40, "temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0}


# ---- texts


def test_samples_stand_side_by_side_each_the_text_of_its_seed(page, server):
    first = generate(page)
    assert first == [complete(server, seed=seed, **SETTINGS)["text"] for seed in (7, 8)]
    assert first[0] != first[1]
    boxes = [card.bounding_box() for card in page.locator(".sample").all()]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert generate(page, seed=9) != first
    assert generate(page) == first
    assert page.locator(".sample .meta").all_inner_texts() == ["seed 7 · 40 tokens", "seed 8 · 40 tokens"]


def test_without_a_seed_texts_differ_and_come_again_with_the_seed_that_is_shown(page):
    first = generate(page, count=1, seed=None)
    assert generate(page, count=1, seed=None) != first
    again = int(page.locator(".sample .meta").inner_text().split()[1])
    assert texts(page) == generate(page, count=1, seed=again)


def test_text_streams(page, server):
    server.pause = 0.02
    page.fill("#max_tokens", "100")
    page.fill("#samples-count", "1")
    page.click("#generate")
    lengths = []
    while page.locator(".sample").get_attribute("data-state") in ("waiting", "writing"):
        lengths.append(len(texts(page)[0]))
        time.sleep(0.05)
    assert len(set(lengths)) > 5 and lengths == sorted(lengths)
    assert 0 < lengths[len(lengths) // 2] < len(texts(page)[0])


def test_stop_frees_the_slots_and_keeps_what_was_written(page, server):
    server.pause = 0.05
    page.fill("#max_tokens", "400")
    page.fill("#samples-count", "3")
    page.click("#generate")
    expect(page.locator(".sample[data-state=writing]")).to_have_count(3)
    assert server.serving.admission.active == 3
    page.get_by_role("button", name="Stop sample 2").click()
    wait_for(lambda: server.serving.admission.active == 2, seconds=3)
    expect(page.locator(".sample").nth(1)).to_have_attribute("data-state", "stopped")
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_for(lambda: server.serving.admission.active == 0, seconds=3)
    expect(page.locator(".sample[data-state=stopped]")).to_have_count(3)
    server.pause = 0.0
    short = texts(page)
    page.wait_for_timeout(300)
    assert texts(page) == short and all(short)


def test_generating_anew_stops_what_still_runs(page, server):
    server.pause = 0.05
    page.fill("#max_tokens", "400")
    page.click("#generate")
    expect(page.locator(".sample[data-state=writing]")).to_have_count(2)
    page.fill("#max_tokens", "3")
    page.click("#generate")
    expect(page.locator(".sample[data-state=done]")).to_have_count(2)
    wait_for(lambda: server.serving.admission.active == 0, seconds=3)


def test_closing_the_page_frees_the_slots(context, server):
    server.pause = 0.05
    opened = context.new_page()
    opened.goto(server.address)
    expect(opened.locator("#model option")).to_have_text(NAME)
    opened.fill("#max_tokens", "400")
    opened.fill("#prompt", PROMPT)
    opened.click("#generate")
    expect(opened.locator(".sample[data-state=writing]")).to_have_count(2)
    opened.close()
    wait_for(lambda: server.serving.admission.active == 0, seconds=3)


def test_a_server_that_ends_says_so_and_still_shows_the_page(page, server):
    server.serving.admission.draining = True
    try:
        page.click("#generate")
        expect(page.locator(".sample[data-state=failed]")).to_have_count(2)
        expect(page.locator(".note-line").first).to_have_text("The server is shutting down")
        page.reload()
        expect(page.locator("#form-error")).to_have_text("The server is shutting down")
    finally:
        server.serving.admission.draining = False
    page.fill("#prompt", PROMPT)
    page.click("#generate")  # the model's name comes with it
    expect(page.locator(".sample[data-state=done]")).to_have_count(2)


def test_a_stop_string_ends_the_text_before_it(page):
    page.locator("#more summary").click()
    page.fill("#stop-strings", "\\n")
    (text,) = generate(page, count=1, tokens=200)
    assert "\n" not in text
    expect(page.locator(".note-line")).to_contain_text("stop string")


# ---- tokens


def test_the_alternatives_are_the_models_own(page, server):
    generate(page, count=1)
    expected = complete(server, seed=7, logprobs=5, **SETTINGS)["logprobs"]
    tokens = page.locator(".sample .token")
    shown = tokens.evaluate_all("all => all.map((each) => each.textContent)")
    assert shown == expected["tokens"]
    for place in (0, 11, len(shown) - 1):
        tokens.nth(place).hover()
        top = sorted(expected["top_logprobs"][place].values(), reverse=True)
        rows = page.locator("#details li .number").all_inner_texts()
        assert len(rows) == len(top) >= 5
        for row, logprob in zip(rows, top, strict=True):
            value = float(row.removeprefix("< ").removesuffix(" %"))
            assert value == pytest.approx(100 * math.exp(logprob), abs=0.051)
        chosen = page.locator("#details .details-head b").inner_text()
        assert float(chosen.removesuffix(" %")) == pytest.approx(
            100 * math.exp(expected["token_logprobs"][place]), abs=0.051
        )


# ---- curating


def test_kept_samples_are_downloaded_as_lines_of_json_that_bring_the_text_back(page, server):
    first, _, third = generate(page, count=3)
    page.get_by_role("button", name="Keep sample 1").click()
    page.get_by_role("button", name="Keep sample 3").click()
    page.get_by_role("button", name="Discard sample 2").click()
    expect(page.locator(".sample[data-verdict=kept]")).to_have_count(2)
    expect(page.locator(".sample[data-verdict=discarded]")).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON lines").click()
    assert download.value.suggested_filename.endswith(".jsonl")
    content = download.value.path().read_text("utf-8")
    assert content.endswith("\n")
    kept = [json.loads(line) for line in content.splitlines()]
    assert [(line["text"], line["seed"]) for line in kept] == [(first, 7), (third, 9)]
    for line in kept:
        assert (line["prompt"], line["model"], line["finish_reason"], line["tokens"]) == (PROMPT, NAME, "length", 40)
        assert complete(server, seed=line["seed"], **line["settings"])["text"] == line["text"]


def test_copy_puts_prompt_and_text_on_the_clipboard(page):
    (text,) = generate(page, count=1)
    page.get_by_role("button", name="Copy prompt and text of sample 1").click()
    expect(page.locator("#status")).to_have_text("Sample 1 is copied.")
    assert page.evaluate("navigator.clipboard.readText()") == PROMPT + text


# ---- code


def code(page, tab):
    """The code of the first sample, as the Copy button gives it."""
    page.get_by_role("button", name="Show sample 1 as code").click()
    page.get_by_role("tab", name=tab).click()
    page.locator("#copy-code").click()
    expect(page.locator("#copy-code")).to_have_text("Copied")
    found = page.evaluate("navigator.clipboard.readText()")
    assert found == page.locator("#code-text").inner_text()
    page.keyboard.press("Escape")
    return found


def run(command, **environment):
    environment = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


ODD = "x = 'it''s' + \"$HOME\\n\" # `ls` !! é 😀\n"  # for a shell's and for Python's quotes


def test_the_curl_call_works_and_writes_the_same_text(page):
    page.fill("#prompt", ODD)
    page.locator("#more summary").click()
    page.fill("#stop-strings", "'$(ls)'\n\\n\\n\\n\\n")
    (text,) = generate(page, count=1)
    chunks = [line.removeprefix("data: ") for line in run(["bash", "-c", code(page, "curl")]).splitlines() if line]
    assert chunks.pop() == "[DONE]"
    assert "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks) == text


def test_the_call_of_openais_client_works_and_writes_the_same_text(page):
    pytest.importorskip("openai", reason="the package openai is not installed")
    page.fill("#prompt", ODD)
    (text,) = generate(page, count=1)
    assert run([sys.executable, "-c", code(page, "Python: openai")]) == text + "\n"


@pytest.mark.parametrize("temperature", ["0.8", "0"])
def test_the_call_of_neo_tf_works_and_writes_the_same_text(page, demo_folder, temperature):
    page.fill("#prompt", ODD)
    page.fill("#temperature", temperature)
    (text,) = generate(page, count=1)
    script = code(page, "Python: neo_tf").replace(json.dumps(NAME), json.dumps(str(demo_folder)))
    root = os.getcwd()
    assert run([sys.executable, "-c", script], PYTHONPATH=root) == text + "\n"


# ---- keys


def test_a_server_with_keys_asks_for_one_and_keeps_it_in_the_tab(context, locked):
    opened = context.new_page()
    opened.goto(locked.address)
    dialog = opened.locator("#key-dialog")
    expect(dialog).to_be_visible()
    expect(dialog.locator("#key-error")).to_be_hidden()
    opened.get_by_label("API key", exact=True).fill("another key")
    opened.keyboard.press("Enter")
    expect(dialog.locator("#key-error")).to_have_text("The API key is wrong")
    opened.get_by_label("API key", exact=True).fill(KEY)
    opened.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(opened.locator("#model option")).to_have_text(NAME)
    opened.fill("#prompt", PROMPT)
    (text,) = generate(opened, count=1)
    assert text
    assert opened.evaluate("Object.values(sessionStorage)") == [KEY]
    assert opened.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    # The code names the key's variable, and works with it.
    shown = code(opened, "curl")
    assert KEY not in shown
    answered = run(["bash", "-c", shown], NEO_TF_API_KEY=KEY)
    assert answered.strip().endswith("[DONE]")
    opened.reload()
    expect(opened.locator("#model option")).to_have_text(NAME)
    opened.get_by_role("button", name="API key").click()
    opened.get_by_role("button", name="Forget it").click()
    expect(dialog).to_be_visible()
    assert opened.evaluate("sessionStorage.length") == 0


def test_a_key_that_is_no_longer_accepted_is_asked_for_again_and_the_run_goes_on(context, locked):
    opened = context.new_page()
    opened.goto(locked.address)
    opened.get_by_label("API key", exact=True).fill(KEY)
    opened.keyboard.press("Enter")
    expect(opened.locator("#model option")).to_have_text(NAME)
    opened.evaluate("sessionStorage.setItem('neo-tf key', 'revoked')")
    opened.fill("#prompt", PROMPT)
    opened.fill("#samples-count", "1")
    opened.click("#generate")
    expect(opened.locator("#key-dialog")).to_be_visible()
    opened.get_by_label("API key", exact=True).fill(KEY)
    opened.keyboard.press("Enter")
    expect(opened.locator(".sample[data-state=done]")).to_have_count(1)


# ---- how it is used


def test_everything_can_be_done_with_the_keyboard(page):
    page.reload()
    expect(page.locator("#model option")).to_have_text(NAME)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the samples")).to_be_focused()
    page.locator("#prompt").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("class Parser:")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".sample[data-state=done]")).to_have_count(2)
    for _ in range(20):  # from the prompt over the settings to the first text
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('text')"):
            break
    page.keyboard.press("ArrowRight")
    first = page.locator(".sample").first
    expect(first.locator(".token").nth(0)).to_be_focused()
    expect(page.locator("#details")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(first.locator(".token").nth(1)).to_be_focused()
    page.keyboard.press("End")
    expect(first.locator(".token").last).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Keep sample 1")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#kept-title")).to_have_text("Kept (1)")


def test_escape_stops(page, server):
    server.pause = 0.05
    page.fill("#max_tokens", "400")
    page.locator("#prompt").press("Control+Enter")
    expect(page.locator(".sample[data-state=writing]")).to_have_count(2)
    page.keyboard.press("Escape")
    expect(page.locator(".sample[data-state=stopped]")).to_have_count(2)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_small_window_scrolls_in_one_direction_alone(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    generate(page)
    page.get_by_role("button", name="Keep sample 1").click()
    page.locator("#more summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator(".sample .token").nth(5).click()
    expect(page.locator("#details")).to_be_visible()
    page.get_by_role("button", name="Show sample 1 as code").click()
    box = page.locator("#code").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    sizes = page.locator("button:visible").evaluate_all("all => all.map((each) => each.getBoundingClientRect().height)")
    assert min(sizes) >= 44  # what a finger hits


CONTRAST = """(selector) => {
  const parse = (text) => {
    const numbers = text.match(/[\\d.]+/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map((each) => each * scale), numbers[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = (color) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.map((each) => linear(each / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll(selector)].map((element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      layers.push(parse(getComputedStyle(each).backgroundColor));
    }
    const back = layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    const front = over(parse(getComputedStyle(element).color), back);
    const [dark, bright] = [light(front), light(back)].sort((one, other) => one - other);
    return (bright + 0.05) / (dark + 0.05);
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_are_readable(page, scheme):
    page.emulate_media(color_scheme=scheme)
    generate(page)
    page.get_by_role("button", name="Keep sample 1").click()
    page.evaluate("document.querySelector('.token').style.setProperty('--surprise', '1')")  # the strongest shade
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) > 384) == (scheme == "light")
    for selector in ("label", ".help", ".meta", ".note-line", ".token", ".prompt", "button", "summary", "h2"):
        ratios = page.evaluate(CONTRAST, selector)
        assert ratios and min(ratios) >= 4.5, selector
