"""The playground in headless Chromium, on a real server; without a browser: test_playground.py."""

import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from server_process import Process

from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.runtime import Request, Session
from pl_compile.testing import TASKS, random_table

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright; without a browser: test_playground.py"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytest_plugins = ["server_fixtures"]
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="needs chromium; without a browser: test_playground.py"
    ),
]

SENTENCE = "so cold"
ASK = {"question": "why?", "place": "a field"}
LABELS = ["<img src=x onerror=alert(1)>", "<script>alert(2)</script>", "a & b"]
MARKUP = {
    "taskname": "markup",
    "prompt_template": "<|VIRTUAL_PROMPT_0|> {<b>bold</b>} is {label}",
    "total_virtual_tokens": 2,
    "choices": LABELS,
}


@pytest.fixture(scope="module")
def bundle(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks `tone` (labels), `ask` (two fields) and `markup` (names that look like HTML)."""
    folder = tmp_path_factory.mktemp("playground")
    table = random_table(tiny_bases["llama"], folder / "table.safetensors", tasks=[*TASKS, MARKUP])
    export_bundle(
        ExportRequest(
            table, tiny_bases["llama"], folder / "bundle", capacity=96, measure_parity=False
        )
    )
    return folder / "bundle"


@pytest.fixture(scope="module")
def server(bundle: Path, start_for_module: Callable[..., Process]) -> Process:
    """A server for tests that leave it as it was."""
    return start_for_module(bundle)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with api.sync_playwright() as playwright:
        # A container has no user namespaces for the sandbox; the pages are our own.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Tab:
    """A page that is open, and all that it asked for and complained of."""

    def __init__(self, browser: "Browser", url: str, **options: Any) -> None:
        self.url = url
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.page.on("console", self._note)
        self.page.goto(f"{url}/")

    def _note(self, message: Any) -> None:
        # The browser notes each answer of a status above 399; the tests make some.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.wrong.append(message.text)

    def choose(self, task: str, **fields: str) -> None:
        self.page.get_by_label("Task", exact=True).select_option(task)
        for name, text in fields.items():
            self.page.get_by_role("textbox", name=name, exact=True).fill(text)

    def ask(self) -> None:
        self.page.get_by_role("button", name="Ask", exact=True).click()

    @property
    def stop(self) -> "Locator":
        return self.page.get_by_role("button", name="Stop")

    def wait(self) -> None:
        api.expect(self.stop).to_be_disabled()
        api.expect(self.page.locator("[aria-busy=true]")).to_have_count(0)

    def answer(self, name: str = "Answer") -> str:
        return self.page.get_by_role("log", name=name, exact=True).inner_text()

    def figures(self) -> list[str]:
        return self.page.locator(".figures").all_inner_texts()

    def table(self) -> list[list[str]]:
        rows = self.page.get_by_role("table").get_by_role("row").all()
        return [row.locator("th, td").all_inner_texts() for row in rows]


@pytest.fixture
def tab(browser: "Browser") -> Iterator[Callable[..., Tab]]:
    """Opens the playground of a server; it never complains, and asks nobody else."""
    opened: list[Tab] = []

    def make(process: Process, **options: Any) -> Tab:
        opened.append(Tab(browser, process.url, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.context.close()
        assert each.wrong == []
        assert len(each.asked) >= 4
        assert [url for url in each.asked if not url.startswith(f"{each.url}/")] == []


def completion(server: Process, **body: Any) -> Any:
    return httpx.post(f"{server.url}/v1/completions", json=body).raise_for_status().json()


def probabilities(server: Process, task: str, fields: dict[str, str], **body: Any) -> Any:
    whole = {"model": task, "fields": fields, **body}
    answer = httpx.post(f"{server.url}/v1/classify", json=whole).raise_for_status().json()
    return {label["label"]: percent(label["probability"]) for label in answer["labels"]}


def percent(probability: float) -> str:
    return "< 0.01 %" if 0 < probability < 0.0001 else f"{100 * probability:.2f} %"


def test_the_form_is_made_of_what_the_task_needs(tab: Callable[..., Tab], server: Process) -> None:
    page = tab(server).page
    task = page.get_by_label("Task", exact=True)
    boxes = page.locator("#fields").get_by_role("textbox")

    assert task.locator("option").all_inner_texts() == ["tone", "ask", "markup"]
    api.expect(task).to_have_accessible_description(
        "3 virtual tokens · answers with one of: positive, negative, neutral"
    )
    api.expect(boxes).to_have_count(1)
    task.select_option("ask")
    api.expect(boxes).to_have_count(2)
    api.expect(boxes.nth(0)).to_have_accessible_name("question")
    api.expect(boxes.nth(0)).to_have_accessible_description(re.compile("Cut at its end"))
    api.expect(boxes.nth(1)).to_have_accessible_name("place")
    api.expect(task).to_have_accessible_description("5 virtual tokens")
    api.expect(page.get_by_label("API key")).to_be_hidden()


def test_an_answer_streams_in_with_its_figures(tab: Callable[..., Tab], server: Process) -> None:
    expected = completion(
        server, model="ask", fields=ASK, max_tokens=9, temperature=1.3, seed=2**62 + 1
    )
    opened = tab(server)
    opened.choose("ask", **ASK)
    opened.page.get_by_text("Options").click()
    for name, text in {"Most tokens": "9", "Temperature": "1.3", "Seed": str(2**62 + 1)}.items():
        opened.page.get_by_label(name).fill(text)

    opened.ask()
    opened.wait()

    usage = expected["usage"]
    assert opened.answer() == expected["choices"][0]["text"]
    assert re.fullmatch(
        r"first token \d+ ms · [\d.]+ tokens/s · "
        rf"{usage['completion_tokens']} tokens · prompt of {usage['prompt_tokens']}\b.*",
        opened.figures()[0],
    )
    assert not opened.page.get_by_role("table").is_visible()


def test_pieces_are_shown_as_they_come_and_stop_ends_the_request(
    tab: Callable[..., Tab], bundle: Path, start: Callable[..., Process], tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    process = start(bundle, hold=hold)
    whole = completion(process, model="ask", fields=ASK)["choices"][0]["text"]
    opened = tab(process)
    opened.choose("ask", **ASK)
    answer = opened.page.get_by_role("log", name="Answer")

    hold.write_text("9")  # of the answer's 64 steps
    opened.ask()
    api.expect(answer).to_have_text(re.compile(r"\S"))
    process.wait_for("plc_requests_running", 1)
    api.expect(answer).to_have_attribute("aria-busy", "true")
    opened.stop.focus()
    opened.page.keyboard.press("Enter")
    opened.wait()
    process.wait_for_line("code=client_left")
    hold.unlink()
    process.wait_for("plc_requests_running", 0)

    assert whole.startswith(opened.answer())
    assert len(opened.answer()) < len(whole)
    assert re.fullmatch(r"first token [\d.]+ m?s · stopped", opened.figures()[0])
    api.expect(opened.page.get_by_role("button", name="Ask", exact=True)).to_be_focused()
    assert opened.page.get_by_role("alert").filter(visible=True).count() == 0
    opened.ask()
    opened.wait()
    assert opened.answer() == whole


def test_another_task_or_question_takes_the_place_of_the_one_under_way(
    tab: Callable[..., Tab], bundle: Path, start: Callable[..., Process], tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    process = start(bundle, "--max-batch", "1", hold=hold)
    opened = tab(process)
    opened.choose("ask", **ASK)
    hold.touch()
    opened.ask()
    process.wait_for("plc_requests_running", 1)

    opened.page.get_by_role("textbox", name="place").fill("the sea")
    opened.page.keyboard.press("Control+Enter")
    process.wait_for_line("code=client_left")
    opened.choose("tone", sentence=SENTENCE)
    api.expect(opened.page.get_by_role("log")).to_have_count(0)
    hold.unlink()
    opened.wait()
    opened.ask()
    opened.wait()

    assert opened.answer() in ("positive", "negative", "neutral")
    assert opened.page.get_by_role("article").count() == 1
    left = [line for line in process.lines if "code=client_left" in line]
    assert len(left) == 2


def test_labels_are_bars_with_numbers_the_likeliest_first(
    tab: Callable[..., Tab], server: Process
) -> None:
    fields = {"sentence": SENTENCE}
    expected = probabilities(server, "tone", fields)
    opened = tab(server)
    opened.choose("tone", **fields)

    opened.ask()
    opened.wait()

    head, *rows = opened.table()
    assert head == ["Label", "Probability"]
    assert dict(rows) == expected
    numbers = [float(number.split()[0]) for _, number in rows]
    assert numbers == sorted(numbers, reverse=True)
    shares = [
        bar.evaluate("bar => bar.getBoundingClientRect().width")
        / bar.locator("..").evaluate("track => track.getBoundingClientRect().width")
        for bar in opened.page.locator(".bar").all()
    ]
    assert shares == pytest.approx([number / 100 for number in numbers], abs=0.01)
    assert opened.answer() in expected


def test_with_and_without_the_prompt_stand_side_by_side(
    tab: Callable[..., Tab], server: Process, bundle: Path
) -> None:
    fields = {"sentence": SENTENCE}
    with Session.open(bundle) as session:
        with_prompt, without = session.generate(
            [Request("tone", fields), Request("tone", fields, use_prompt=False)]
        )
    numbers = [probabilities(server, "tone", fields, use_prompt=use) for use in (True, False)]
    assert numbers[0] != numbers[1]
    opened = tab(server)
    opened.choose("tone", **fields)

    opened.page.get_by_role("switch", name=re.compile("Compare")).check()
    opened.ask()
    opened.wait()

    assert opened.page.get_by_role("article").count() == 2
    assert opened.page.get_by_role("heading", level=3).all_inner_texts()[:2] == [
        "With the prompt",
        "Base alone",
    ]
    assert opened.answer() == with_prompt.text
    assert opened.answer("Answer of the base alone") == without.text
    head, *rows = opened.table()
    assert head == ["Label", "With the prompt", "Base alone"]
    for label, first, second in rows:
        assert (first, second) == (numbers[0][label], numbers[1][label])


def test_errors_stand_where_they_belong(tab: Callable[..., Tab], server: Process) -> None:
    opened = tab(server)
    alerts = opened.page.get_by_role("alert").filter(visible=True)
    opened.choose("ask", **ASK)
    opened.page.get_by_text("Options").click()
    temperature = opened.page.get_by_label("Temperature")
    temperature.fill("warm")
    opened.page.get_by_text("Options").click()

    opened.ask()
    opened.wait()

    api.expect(temperature).to_be_visible()  # the options opened again
    api.expect(temperature).to_have_attribute("aria-invalid", "true")
    api.expect(temperature).to_have_accessible_description(
        re.compile("key 'temperature' is 'warm', expected a number, 0 or more")
    )
    assert alerts.count() == 2
    assert alerts.last.inner_text() == "No answer: the form says what is wrong."

    temperature.fill("")
    opened.choose("ask", question="x", place="far away " * 60)
    opened.ask()
    opened.wait()
    assert temperature.get_attribute("aria-invalid") is None
    assert alerts.count() == 1
    assert "its field 'question' used up; expected at most" in alerts.inner_text()

    opened.choose("ask", **ASK)
    opened.ask()
    opened.wait()
    assert alerts.count() == 0
    assert opened.answer()


PIECE = '{"choices": [{"text": "so far", "finish_reason": null}]}'
FAILED = '{"error": {"message": "The server failed.", "param": null, "code": "internal_error"}}'


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (f"data: {FAILED}\n\n", "The server failed."),
        ("", "The connection ended before the answer did."),
        ("data: {", "The connection ended before the answer did."),
    ],
)
def test_a_stream_that_breaks_keeps_what_it_said(
    tab: Callable[..., Tab], server: Process, rest: str, said: str
) -> None:
    opened = tab(server)
    body = f"data: {PIECE}\n\n{rest}"
    opened.page.route("**/v1/completions", lambda route: route.fulfill(body=body))
    opened.choose("ask", **ASK)

    opened.ask()
    opened.wait()

    assert opened.answer() == "so far"
    assert opened.page.get_by_role("alert").filter(visible=True).all_inner_texts() == [said]


def test_while_the_server_starts_the_page_waits_for_it(
    tab: Callable[..., Tab], server: Process
) -> None:
    opened = tab(server)
    starting = '{"error": {"message": "Loading.", "param": null, "code": "starting"}}'
    opened.page.route(
        "**/v1/models", lambda route: route.fulfill(status=503, body=starting), times=1
    )
    opened.page.reload()

    api.expect(opened.page.get_by_text("Loading.")).to_be_visible()
    api.expect(opened.page.get_by_label("Task", exact=True)).to_be_visible()
    api.expect(opened.page.get_by_text("Loading.")).to_be_hidden()


def test_a_server_that_is_gone_is_said(
    tab: Callable[..., Tab], bundle: Path, start: Callable[..., Process]
) -> None:
    process = start(bundle)
    opened = tab(process)
    opened.choose("tone", sentence=SENTENCE)
    process.signalled(signal.SIGTERM)
    assert process.ended() == 0

    opened.ask()
    opened.wait()

    alerts = opened.page.get_by_role("alert").filter(visible=True).all_inner_texts()
    assert set(alerts) == {"The server cannot be reached. Is it still running?"}


def test_the_keyboard_is_enough_and_the_focus_is_seen(
    tab: Callable[..., Tab], server: Process
) -> None:
    opened = tab(server)
    page = opened.page
    api.expect(page.get_by_label("Task", exact=True)).to_be_visible()
    press, seen = page.keyboard.press, []

    def name_of_focus() -> str:
        focused = page.locator(":focus")
        api.expect(focused).to_have_css("outline-style", "solid")
        api.expect(focused).to_have_css("outline-width", "3px")
        return str(focused.evaluate("e => e.id || e.textContent.trim()"))

    for _ in range(8):
        press("Tab")
        seen.append(name_of_focus())
        if seen[-1] == "field-0":
            page.keyboard.type(SENTENCE)
    assert seen == [
        "Skip to the answer",
        "API",
        "Metrics",
        "task",
        "field-0",
        "Options",
        "compare",
        "go",
    ]
    press("Shift+Tab")
    press("Space")
    assert page.get_by_role("switch").is_checked()
    page.get_by_label("sentence").focus()
    press("Control+Enter")
    opened.wait()

    assert opened.answer() in ("positive", "negative", "neutral")
    assert page.get_by_role("article").count() == 2
    api.expect(page.get_by_label("sentence")).to_be_focused()


def test_readers_of_screens_find_their_way(tab: Callable[..., Tab], server: Process) -> None:
    opened = tab(server)
    page = opened.page
    opened.choose("tone", sentence=SENTENCE)
    opened.ask()
    opened.wait()

    for landmark in ("banner", "main", "navigation"):
        api.expect(page.get_by_role(landmark)).to_have_count(1)
    for name in ("Ask", "Answer"):
        api.expect(page.get_by_role("region", name=name, exact=True)).to_be_visible()
    api.expect(page.get_by_role("heading", level=1)).to_have_text("plc playground")
    answer = page.get_by_role("log", name="Answer")
    api.expect(answer).to_have_attribute("aria-live", "polite")
    api.expect(answer).to_have_attribute("aria-busy", "false")
    api.expect(page.get_by_role("table", name="How likely each label is")).to_be_visible()
    api.expect(page.get_by_role("rowheader")).to_have_count(3)
    for control in page.locator("button, input, select, textarea, a, pre").all():
        if control.is_visible():
            api.expect(control).to_have_accessible_name(re.compile(r"\S"))


def test_markup_in_texts_of_the_server_and_the_user_is_text(
    tab: Callable[..., Tab], server: Process
) -> None:
    text = "<script>alert(3)</script><img src=x onerror=alert(4)>"
    expected = probabilities(server, "markup", {"<b>bold</b>": text})
    opened = tab(server)

    opened.choose("markup", **{"<b>bold</b>": text})
    opened.ask()
    opened.wait()

    about = opened.page.locator("#about")
    assert about.inner_text() == f"2 virtual tokens · answers with one of: {', '.join(LABELS)}"
    assert dict(opened.table()[1:]) == expected
    assert set(expected) == set(LABELS)
    assert opened.answer() in LABELS
    assert opened.page.locator("main img, main script, main b").count() == 0


def test_the_command_gives_the_same_answer(
    tab: Callable[..., Tab], server: Process, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl; asked by the page itself: the tests above")
    fields = {"question": 'it\'s $HOME `id` "x" \\ !?\nüber 😀', "place": "'; exit 1"}
    opened = tab(server, permissions=["clipboard-read", "clipboard-write"])
    opened.choose("ask", **fields)
    opened.ask()
    opened.wait()

    opened.page.get_by_text("The same with").click()
    opened.page.get_by_role("button", name="Copy: Answer").click()
    api.expect(opened.page.get_by_role("button", name="Copy: Answer")).to_have_text("Copied")
    command = opened.page.evaluate("() => navigator.clipboard.readText()")
    done = subprocess.run(
        ["sh", "-c", f"{command} --silent --noproxy '*'"],
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )

    assert command == opened.page.get_by_label("Answer, as a command").inner_text()
    assert httpx.Response(200, content=done.stdout).json()["choices"][0]["text"]
    assert (
        httpx.Response(200, content=done.stdout).json()["choices"][0]["text"]
        == (completion(server, model="ask", fields=fields)["choices"][0]["text"])
    )


def test_a_key_is_asked_for_where_the_server_wants_one_and_stays_in_memory(
    tab: Callable[..., Tab], bundle: Path, start: Callable[..., Process]
) -> None:
    process = start(bundle, PLC_API_KEY="secret-key")
    opened = tab(process)
    page, field = opened.page, opened.page.get_by_label("API key")
    api.expect(field).to_be_focused()
    api.expect(page.get_by_label("Task", exact=True)).to_be_hidden()

    field.fill("another")
    field.press("Enter")
    api.expect(page.get_by_role("alert").filter(visible=True)).to_have_text("This is not the key.")
    field.fill("secret-key")
    field.press("Enter")
    api.expect(page.get_by_label("Task", exact=True)).to_be_visible()
    api.expect(field).to_be_hidden()
    opened.choose("tone", sentence=SENTENCE)
    opened.ask()
    opened.wait()

    assert opened.answer() in ("positive", "negative", "neutral")
    page.get_by_text("The same with").click()
    command = page.get_by_label("Answer, as a command").inner_text()
    assert '-H "Authorization: Bearer $PLC_API_KEY"' in command
    assert "secret-key" not in page.content()
    assert page.evaluate("() => [localStorage.length, sessionStorage.length, document.cookie]") == [
        0,
        0,
        "",
    ]
    page.reload()
    api.expect(field).to_be_focused()
    assert field.input_value() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system(tab: Callable[..., Tab], server: Process, scheme: Any) -> None:
    page = tab(server, color_scheme=scheme).page

    back, text = page.locator("body").evaluate(
        "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
    )

    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (back, text)]
    assert (light[0] > 0.9, light[1] < 0.2) == (scheme == "light", scheme == "light")
    assert (light[0] < 0.1, light[1] > 0.9) == (scheme == "dark", scheme == "dark")


def test_a_phone_shows_all_without_scrolling_sideways(
    tab: Callable[..., Tab], server: Process
) -> None:
    opened = tab(server, viewport={"width": 320, "height": 640}, is_mobile=True, has_touch=True)
    opened.choose("markup", **{"<b>bold</b>": "long" * 15})
    opened.page.get_by_role("switch").check()

    opened.ask()
    opened.wait()
    opened.page.get_by_text("The same with").click()

    assert opened.page.evaluate("() => document.documentElement.scrollWidth") == 320
    for button in opened.page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 24  # WCAG 2.2, level AA
    assert opened.page.locator("#answers").evaluate(
        "e => e.getBoundingClientRect().top < innerHeight"
    )
