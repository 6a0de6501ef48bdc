"""The playground without a browser: its files, their headers, and what they promise."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from pl_compile.runtime.server import playground
from pl_compile.runtime.server.app import make_app

pytest_plugins = ["server_fixtures"]

FOLDER = Path(playground.__file__).with_name("page")
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
CSS, SCRIPT = TEXTS["playground.css"], TEXTS["playground.js"]


class Page(HTMLParser):
    """The elements of a page, each with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.elements if attribute in attrs]


PAGE = Page(TEXTS["index.html"])


def test_each_file_is_sent_with_a_strict_policy(shared: Any) -> None:
    assert {name for name, _ in playground.FILES.values()} == set(TEXTS)
    for path, (name, kind) in playground.FILES.items():
        answer = shared.client.get(path)

        assert answer.status_code == 200
        assert answer.text == TEXTS[name]
        assert answer.headers["content-type"] == kind
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"].split("; ")
        assert policy[0] == "default-src 'none'"
        assert "require-trusted-types-for 'script'" in policy
        assert "frame-ancestors 'none'" in policy
        sources = {source for each in policy for source in each.split()[1:]}
        assert sources == {"'none'", "'self'", "'script'"}


def test_a_browser_keeps_a_copy_as_long_as_it_holds(shared: Any) -> None:
    first = shared.client.get("/")
    tag = first.headers["etag"]

    def again(tags: str) -> Any:
        return shared.client.get("/", headers={"if-none-match": tags})

    assert first.headers["cache-control"] == "no-cache"
    assert shared.client.get("/playground.js").headers["etag"] != tag
    for tags in (tag, f"W/{tag}", f'"other", {tag}'):
        same = again(tags)
        assert (same.status_code, same.content) == (304, b"")
        assert same.headers["etag"] == tag
    assert again('"other"').status_code == 200


def test_only_get_and_head_are_answered(shared: Any) -> None:
    head = shared.client.head("/")

    assert head.status_code == 200
    assert head.headers["content-length"] == str(len(TEXTS["index.html"].encode()))
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        refused = shared.client.request(method, "/")
        assert refused.status_code == 405
        assert refused.headers["allow"] == "GET"


def test_it_is_no_part_of_the_api_and_can_be_left_out(shared: Any) -> None:
    without = type(shared.client)(make_app(shared.service, playground=False))

    assert not set(playground.FILES) & set(shared.client.get("/openapi.json").json()["paths"])
    for path in playground.FILES:
        assert without.get(path).status_code == 404
    assert without.get("/v1/models").status_code == 200


def test_the_option_leaves_it_out(start: Callable[..., Any], bundle: Path) -> None:
    with_it, without = start(bundle), start(bundle, "--no-playground")

    answered = httpx.get(f"{with_it.url}/")
    head = httpx.head(f"{with_it.url}/")
    assert answered.text == TEXTS["index.html"]
    assert (head.status_code, head.content) == (200, b"")
    assert httpx.get(f"{without.url}/").status_code == 404


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_nothing_comes_from_elsewhere(name: str) -> None:
    text = TEXTS[name].replace('xmlns="http://www.w3.org/2000/svg"', "")

    assert not re.findall(r"(?:https?:)?//[\w.]+\.\w+", text)
    assert "@import" not in text
    assert "url(" not in text


def test_all_that_the_page_links_to_is_there(shared: Any) -> None:
    links = [link for link in PAGE.values("href") + PAGE.values("src") if link[0] != "#"]

    assert len(links) > 4
    for link in links:
        assert shared.client.get(f"/{link}").status_code == 200
    for link in re.findall(r'= "(v1/\w+)"', SCRIPT):
        assert f"/{link}" in shared.client.get("/openapi.json").json()["paths"]


def test_no_text_becomes_html_and_no_code_is_in_the_page() -> None:
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "srcdoc",
    ):
        assert way not in SCRIPT
    for way in ("localStorage", "sessionStorage", "document.cookie", "indexedDB"):
        assert way not in SCRIPT  # a key stays in memory
    assert not [name for _, attrs in PAGE.elements for name in attrs if name.startswith("on")]
    assert not PAGE.values("style")
    assert [attrs.get("src") for tag, attrs in PAGE.elements if tag == "script"] == [
        "playground.js"
    ]


def test_every_input_has_a_label_and_every_reference_leads_somewhere() -> None:
    ids = PAGE.values("id")
    named = set(PAGE.values("for"))
    inside_a_label = {"compare"}
    inputs = {attrs["id"] for tag, attrs in PAGE.elements if tag in ("input", "select", "textarea")}

    assert len(ids) == len(set(ids))
    assert inputs == named | inside_a_label
    assert re.search(r'<label class="switch">\s*<input id="compare"', TEXTS["index.html"])
    for attribute in ("for", "aria-labelledby", "aria-describedby"):
        for value in PAGE.values(attribute):
            assert set(value.split()) <= set(ids)
    assert set(re.findall(r'\$\("([\w-]+)"\)', SCRIPT)) <= set(ids)
    assert [tag for tag, _ in PAGE.elements if tag in ("header", "nav", "main", "h1")] == [
        "header",
        "h1",
        "nav",
        "main",
    ]
    assert ("html", {"lang": "en"}) in PAGE.elements


# Texts and what they stand on; the least contrast is that of WCAG 2.2, level AA.
TEXT_ON = [
    *[("text", back) for back in ("page", "card", "inset")],
    *[("quiet", back) for back in ("page", "card", "inset")],
    ("accent", "page"),
    ("on-accent", "accent"),
    ("error", "error-back"),
]
EDGES_ON = [("control", "card"), ("accent", "track"), ("accent", "card"), ("accent", "page")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(scheme: str) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): #(\w{6});", light if scheme == "light" else dark))

    for least, pairs in ((4.5, TEXT_ON), (3, EDGES_ON)):
        for front, back in pairs:
            assert contrast(colours[front], colours[back]) >= least, (front, back)


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("000000", "ffffff") == pytest.approx(21)
    assert contrast("777777", "ffffff") == pytest.approx(4.48, abs=0.005)


def contrast(first: str, second: str) -> float:
    """Of two colours in hexadecimal, as WCAG 2.2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)
