"""The page in a browser, before answers that are written here: errors, odd tokens, long texts, keys."""

import json
import math

import pytest

pytest.importorskip("fastapi", reason="the server's tests need the extra server")
from fastapi import FastAPI
from page_helpers import browser_path, chromium, events, listening

from neo_tf.runtime.server.page_routes import router

browser_path()
from playwright.sync_api import expect  # noqa: E402

MODELS = {"object": "list", "data": [{"id": "a-model", "object": "model"}]}
STREAM = {"content-type": "text/event-stream"}
HALF = math.log(0.5)


@pytest.fixture(scope="module")
def context():
    with chromium() as browser:
        yield browser.new_context()


@pytest.fixture(scope="module")
def address():
    app = FastAPI()
    app.include_router(router)
    app.get("/v1/models")(lambda: MODELS)
    with listening(app) as found:
        yield found


@pytest.fixture
def page(context, address):
    """The page, which one sample is asked of; an error in its code fails the test."""
    opened = context.new_page()
    faults = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#model option", state="attached")
    opened.fill("#samples-count", "1")
    opened.fill("#prompt", "Once")
    yield opened
    opened.close()
    assert faults == []


def answer(page, *answers):
    """Answers completions: a text is a stream, a tuple is (status, error's message, headers, field)."""
    asked = []

    def reply(route):
        asked.append(route.request.post_data_json)
        given = answers[min(len(asked), len(answers)) - 1]
        if isinstance(given, str):
            route.fulfill(status=200, headers=STREAM, body=given)
        elif given is None:
            route.abort("connectionrefused")
        else:
            status, message, headers, field = given
            error = {"error": {"message": message, "type": "x", "param": field, "code": None}}
            route.fulfill(status=status, headers=headers, json=error)

    page.route("**/v1/completions", reply)
    return asked


def written(page):
    return page.locator(".sample .written").evaluate("element => element.textContent")


def spans(page):
    return page.locator(".sample .token").evaluate_all("all => all.map((span) => span.textContent)")


# ---- tokens


def test_a_token_says_its_probability_and_its_alternatives(page):
    top = {" a": math.log(0.25), " upon": HALF, "\n": math.log(0.0004)}
    answer(page, events((" upon", [(" upon", HALF, top)])))
    page.click("#generate")
    page.locator(".token").hover()
    details = page.locator("#details")
    expect(details.locator(".details-head")).to_have_text("␣upon 50.0 %")
    assert details.locator("li").evaluate_all("all => all.map((each) => each.innerText.replace(/\\s+/g, ' '))") == [
        "␣upon 50.0 % , chosen",
        "␣a 25.0 %",
        "⏎ 0.04 %",
    ]
    page.mouse.move(0, 0)
    expect(details).to_be_hidden()


def test_a_token_that_is_not_among_the_most_likely_stands_below_them(page):
    top = {f"t{number}": math.log(0.1) - number / 100 for number in range(5)}
    answer(page, events((" rare", [(" rare", math.log(1e-9), top)])))
    page.click("#generate")
    page.locator(".token").hover()
    expect(page.locator("#details li")).to_have_count(6)
    expect(page.locator("#details li").last).to_contain_text("␣rare< 0.0001 %")


def test_a_character_of_several_tokens_is_one_piece_with_the_bytes_of_each(page):
    tokens = [("bytes:\\xf0\\x9f", HALF, {}), ("bytes:\\x98", HALF, {}), ("bytes:\\x80", HALF, {}), (" ok", HALF, {})]
    answer(page, events(("", tokens[:1]), ("", tokens[1:2]), ("😀", tokens[2:3]), (" ok", tokens[3:])))
    page.click("#generate")
    expect(page.locator(".token")).to_have_count(2)
    assert spans(page) == ["😀", " ok"]
    page.locator(".token").first.hover()
    heads = page.locator("#details .details-head").all_inner_texts()
    assert [text.split() for text in heads] == [[*byte, "50.0", "%"] for byte in (["F0", "9F"], ["98"], ["80"])]
    expect(page.locator("#details")).to_contain_text("3 tokens write this together")


def test_bytes_that_become_no_character_show_as_the_server_writes_them(page):
    tokens = [("bytes:\\xe2\\x82", HALF, {}), (" a", HALF, {}), ("bytes:\\xff", HALF, {})]
    answer(page, events(("", tokens[:1]), ("\ufffd a", tokens[1:2]), ("\ufffd", tokens[2:])))
    page.click("#generate")
    expect(page.locator(".token")).to_have_count(2)
    assert spans(page) == ["\ufffd a", "\ufffd"]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        # An end-of-text token writes nothing.
        ([(" a", " a"), ("", "<|endoftext|>")], [" a", ""]),
        # A stop string ended the text inside a token.
        ([(" a", " a"), (" b", " bcd")], [" a", " b"]),
        # Spaces before punctuation are taken away: the text is the server's, and the next token is found again.
        ([("Hi", "Hi"), (".", " ."), (" So", " So")], ["Hi", ".", " So"]),
        # Text that waits for the next token, as word pieces do.
        ([("", "un"), ("un", "seen"), ("seen", "!"), ("!", "")], ["un", "seen", "!", ""]),
        # Marks of direction, letters that join, and a family.
        (
            [("\u202eשלום", "\u202eשלום"), (" مر", " مر"), ("حبا", "حبا"), ("👨\u200d👩", "👨\u200d👩")],
            ["\u202eשלום", " مر", "حبا", "👨\u200d👩"],
        ),
    ],
)
def test_the_text_is_the_servers_and_tokens_are_laid_over_it(page, pieces, expected):
    answer(page, events(*[(text, [(name, HALF, {})]) for text, name in pieces]))
    page.click("#generate")
    expect(page.locator(".sample[data-state=done]")).to_have_count(1)
    assert written(page) == "".join(text for text, _ in pieces)
    assert spans(page) == expected


def test_text_without_tokens_shows_at_once(page):
    answer(page, events((" some", []), (" text", []), is_whole=False))
    page.click("#generate")
    expect(page.locator(".sample[data-state=failed]")).to_have_count(1)
    assert written(page) == " some text"


def test_a_models_text_is_never_markup(page):
    text = "<img src=x onerror=\"document.title='gone'\"><script>document.title='gone'</script>"
    page.fill("#prompt", text)
    answer(page, events((text, [(text, HALF, {"<b>": -3.0})])))
    page.click("#generate")
    page.locator(".token").hover()
    page.click("text=Keep")
    page.click("#code-button")
    assert written(page) == text
    assert page.title() == "neo-tf"
    assert page.locator("main img").count() == 0


def test_a_long_word_and_a_long_text_stay_inside_the_window(page):
    page.set_viewport_size({"width": 360, "height": 640})
    long = "x" * 3000
    lines = [("\nline", [("\nline", HALF, {})])] * 800
    answer(page, events((long, [(long, HALF, {long: -1.0})]), *lines))
    page.click("#generate")
    expect(page.locator(".sample[data-state=done]")).to_have_count(1)
    page.locator(".token").first.focus()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    box = page.locator("#details").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    assert box["y"] >= 0 and box["y"] + box["height"] <= 640


def test_arrows_go_from_token_to_token_and_from_line_to_line(page):
    names = ["one", " two", "\n", "three", " four", "\n", "five"]
    answer(page, events(*[(name, [(name, HALF, {})]) for name in names]))
    page.fill("#prompt", " ")
    page.click("#generate")
    expect(page.locator(".token")).to_have_count(7)
    page.locator(".sample .text").focus()
    for key, expected in (
        ("ArrowDown", None),  # it scrolls
        ("ArrowRight", "one"),
        ("ArrowLeft", "one"),
        ("ArrowRight", " two"),
        ("ArrowDown", " four"),
        ("ArrowDown", "five"),
        ("ArrowDown", "five"),
        ("ArrowUp", "three"),
        ("End", "five"),
        ("ArrowRight", "five"),
        ("Home", "one"),
    ):
        page.keyboard.press(key)
        focused = page.evaluate("document.activeElement.matches('.token') ? document.activeElement.textContent : null")
        assert focused == expected, key


# ---- errors


def test_a_busy_server_is_asked_again_when_it_says(page):
    asked = answer(page, (429, "the queue is full", {"retry-after": "1"}, None), events((" upon", [])))
    page.click("#generate")
    expect(page.locator(".note-line")).to_have_text("The server is busy. Next try in 1 s")
    expect(page.locator(".sample[data-state=done]")).to_have_count(1)
    assert len(asked) == 2 and asked[0] == asked[1]


def test_waiting_for_a_busy_server_can_be_stopped(page):
    asked = answer(page, (429, "the queue is full", {"retry-after": "30"}, None))
    page.click("#generate")
    expect(page.locator(".note-line")).to_contain_text("Next try in")
    page.click("#stop")
    expect(page.locator(".sample[data-state=stopped]")).to_have_count(1)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((503, "the server is shutting down", {"retry-after": "5"}, None), "The server is shutting down"),
        ((500, "EngineError: it broke", {}, None), "EngineError: it broke"),
        ((413, "the body has more than 9 bytes", {}, None), "The body has more than 9 bytes"),
        (None, "The server cannot be reached. Is it still running?"),
    ],
)
def test_a_failure_shows_on_the_sample_which_can_be_tried_again(page, reply, message):
    answer(page, reply, events((" upon", [])))
    page.click("#generate")
    expect(page.locator(".note-line")).to_have_text(message)
    expect(page.locator("#status")).to_contain_text(message)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".sample[data-state=done]")).to_have_count(1)
    assert written(page) == " upon"


def test_a_lost_connection_keeps_what_was_written_and_says_that_it_is_not_all(page):
    answer(page, events((" upon", [(" upon", HALF, {})]), (" a", [(" a", HALF, {})]), is_whole=False))
    page.click("#generate")
    expect(page.locator(".note-line")).to_have_text("The connection ended before the text did.")
    assert written(page) == " upon a"
    expect(page.locator(".sample")).to_have_attribute("data-state", "failed")


def test_an_error_inside_a_stream_shows(page):
    error = json.dumps({"error": {"message": "the engine stopped", "type": "server_error"}})
    answer(page, events((" upon", []), is_whole=False) + f"data: {error}\n\ndata: [DONE]\n\n")
    page.click("#generate")
    expect(page.locator(".note-line")).to_have_text("The engine stopped")
    assert written(page) == " upon"


def test_a_text_that_the_servers_filter_withheld_says_so(page):
    answer(page, events(("", []), finish="content_filter"))
    page.click("#generate")
    expect(page.locator(".note-line")).to_have_text("Withheld by the server's filter")
    expect(page.get_by_role("button", name="Keep sample 1")).to_be_hidden()


def test_a_refused_value_is_shown_at_its_field(page):
    answer(page, (400, "top_k must be smaller", {}, "top_k"))
    page.click("#generate")
    expect(page.locator("#form-error")).to_have_text("top_k must be smaller")
    expect(page.locator("#top_k")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#top_k")).to_be_focused()  # its part of the form was closed


def test_keeping_a_sample_beside_a_refused_one_leaves_the_focus_there(page):
    answer(page, events((" upon", [])), (400, "top_k must be smaller", {}, "top_k"))
    page.fill("#samples-count", "2")
    page.click("#generate")
    expect(page.locator("#form-error")).to_be_visible()
    keep = page.locator(".sample[data-state=done]").get_by_role("button", name="Keep")
    keep.click()
    expect(keep).to_be_focused()
    expect(page.locator("#status")).to_have_text("Kept; 1 in all.")
    keep.click()
    expect(page.locator("#status")).to_have_text("No longer kept; 0 still are.")


def test_a_value_outside_its_range_is_not_sent(page):
    asked = answer(page, events((" upon", [])))
    page.evaluate("document.querySelector('#min_p').value = '7'")  # in the part of the form that is closed
    page.click("#generate")
    expect(page.locator("#min_p")).to_be_focused()
    assert asked == []


# ---- what is sent


def test_the_request_says_what_the_form_says(page):
    asked = answer(page, events((" upon", [])))
    page.locator("#more summary").click()
    values = {"max_tokens": "7", "temperature": "1.25", "top_p": "0.5", "top_k": "9", "min_p": "0.125"}
    for name, value in {**values, "repetition_penalty": "1.5", "seed": "9007199254740000"}.items():
        page.fill(f"#{name}", value)
    page.fill("#stop-strings", "\\n\\n\nThe end\n\\\\n\n")
    page.click("#generate")
    expect(page.locator(".sample[data-state=done]")).to_have_count(1)
    assert asked == [
        {
            "model": "a-model",
            "prompt": "Once",
            "max_tokens": 7,
            "temperature": 1.25,
            "top_p": 0.5,
            "top_k": 9,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "seed": 9007199254740000,
            "stop": ["\n\n", "The end", "\\n"],
            "logprobs": 5,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_without_a_seed_each_run_draws_one_and_says_it(page):
    asked = answer(page, events((" upon", [])))
    page.fill("#samples-count", "3")
    for _ in range(2):
        page.click("#generate")
        expect(page.locator(".sample[data-state=done]")).to_have_count(3)
    seeds = sorted(body["seed"] for body in asked)
    assert len(set(seeds)) == 6
    shown = page.locator(".sample .meta").all_inner_texts()
    assert [int(text.split()[1]) for text in shown] == [asked[3]["seed"] + number for number in range(3)]


def test_greedy_samples_would_be_equal_so_one_is_written(page):
    asked = answer(page, events((" upon", [])))
    page.fill("#samples-count", "3")
    page.fill("#temperature", "0")
    page.click("#generate")
    expect(page.locator(".sample[data-state=done]")).to_have_count(1)
    assert len(asked) == 1 and asked[0]["temperature"] == 0


# ---- kept samples


def test_closing_the_page_asks_first_while_kept_samples_are_not_downloaded(page):
    answer(page, events((" upon", [])))
    page.click("#generate")
    page.get_by_role("button", name="Keep sample 1").click()
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.reload()
    assert asked == ["beforeunload"]


def test_kept_samples_stay_through_the_next_run_and_can_be_removed(page):
    answer(page, events((" upon", [])), events((" a time", [])))
    page.click("#generate")
    page.get_by_role("button", name="Keep sample 1").click()
    page.click("#generate")
    expect(page.locator("#kept-title")).to_have_text("Kept (1)")
    expect(page.locator(".sample .written")).to_have_text(" a time")
    page.get_by_role("button", name="Keep sample 1").click()
    expect(page.locator("#kept-title")).to_have_text("Kept (2)")
    assert page.locator("#kept-list p").all_inner_texts() == ["Once upon", "Once a time"]
    page.get_by_role("button", name="Remove: upon").click()
    assert page.locator("#kept-list p").all_inner_texts() == ["Once a time"]
    page.get_by_role("button", name="Discard sample 1").click()
    expect(page.locator("#kept")).to_be_hidden()


# ---- motion and contrast


def test_nothing_moves_where_the_reader_wants_no_motion(page):
    answer(page, (429, "the queue is full", {"retry-after": "30"}, None))
    page.click("#generate")
    card = page.locator(".sample")
    card.evaluate("element => { element.dataset.state = 'writing'; }")
    animation = "element => getComputedStyle(element, '::after').animationName"
    assert card.locator(".written").evaluate(animation) == "blink"
    page.emulate_media(reduced_motion="reduce")
    assert card.locator(".written").evaluate(animation) == "none"
