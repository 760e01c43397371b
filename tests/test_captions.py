"""The house format of captions: parse, render, lint, brands."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.data.captions import (
    BRAND,
    Caption,
    foreign_share,
    lint,
    marker,
    normalise,
    read_caption,
    replace_brand,
)
from triptych.errors import InputError

GOOD = (
    "Three pictures of one <Brand> shirt. <IMAGE 1> The front, red. <IMAGE 2> The back, plain. <IMAGE 3> "
    "A man wears it."
)
words = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cf", "Co", "Zl", "Zp"], exclude_characters="<>"),
    min_size=1,
    max_size=40,
)
texts = words.map(normalise).filter(bool)


@given(st.one_of(st.just(""), texts), st.lists(texts, min_size=1, max_size=12))
def test_parse_undoes_render(summary: str, panels: list[str]) -> None:
    caption = Caption(summary, tuple(panels))
    assert Caption.parse(caption.render(), len(panels)) == caption
    assert "  " not in caption.render() and caption.render().strip() == caption.render()


@given(st.text(max_size=200), st.integers(1, 4))
def test_any_text_is_parsed_or_refused_and_never_crashes(text: str, panels: int) -> None:
    problems = lint(text, panels)
    try:
        caption = Caption.parse(text, panels)
    except InputError:
        assert problems
    else:
        assert Caption.parse(caption.render(), panels) == caption


def test_parse_takes_text_apart() -> None:
    caption = Caption.parse(GOOD.replace(" <IMAGE 2>", "\n\n  <IMAGE 2>\t"))
    assert caption == Caption(
        "Three pictures of one <Brand> shirt.", ("The front, red.", "The back, plain.", "A man wears it.")
    )
    assert caption.render() == GOOD
    assert lint(GOOD) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "marker <IMAGE 1> is missing"),
        (GOOD.replace("<IMAGE 2>", ""), "marker <IMAGE 2> is missing"),
        (GOOD.replace("<IMAGE 2>", "<image 2>"), "marker <IMAGE 2> is missing"),
        (GOOD.replace("<IMAGE 2>", "<IMAGE2>"), "marker <IMAGE 2> is missing"),
        (GOOD.replace("<IMAGE 2>", "<IMAGE 02>"), "marker <IMAGE 2> is missing"),
        (GOOD + " <IMAGE 1> again", "marker <IMAGE 1> stands there 2 times"),
        (GOOD + " <IMAGE 4> more", "there are markers of panels that do not exist"),
        ("s <IMAGE 2> a <IMAGE 1> b <IMAGE 3> c", "the markers are not in order"),
        ("s <IMAGE 1> a <IMAGE 2> \n <IMAGE 3> c", "no text after <IMAGE 2>"),
        ("s <IMAGE 1> a <IMAGE 2> b <IMAGE 3>", "no text after <IMAGE 3>"),
    ],
)
def test_broken_structure_is_named_and_refused(text: str, problem: str) -> None:
    assert problem in lint(text)
    with pytest.raises(InputError, match="house format") as caught:
        Caption.parse(text)
    assert caught.value.hint == "Write summary <IMAGE 1> text <IMAGE 2> text <IMAGE 3> text."


@pytest.mark.parametrize(
    ("insert", "problem"),
    [
        ("<script>alert(1)</script>", "markup"),
        ("< img src=x onerror=alert(1)>", "markup"),
        ("<!-- x -->", "markup"),
        ("&#60;b&#62;", "markup"),
        ("&lt;b&gt;", "markup"),
        ("![x](y.png)", "markup"),
        ("see https://example.org/?q=", "markup"),
        ("\u202eevil\u202c", "control or invisible"),
        ("zero\u200bwidth", "control or invisible"),
        ("\x1b[31mred", "control or invisible"),
        ("nul\x00", "control or invisible"),
        ("line\u2028separator", "control or invisible"),
        ("paragraph\u2029separator", "control or invisible"),
        ("private\ue000use", "control or invisible"),
        ("\udc80", "control or invisible"),
        ("<IMAGE " + "9" * 5000 + ">", "markup"),
    ],
)
def test_what_does_not_belong_in_a_caption(insert: str, problem: str) -> None:
    found = lint(GOOD.replace("red", f"red {insert} "))
    assert any(problem in one for one in found), found
    assert all(insert not in one for one in found)  # problems never quote the text


def test_small_talk_after_a_marker_is_small_talk() -> None:
    assert lint("<IMAGE 1> Sure, a red shirt.", 1) == [
        "no summary before <IMAGE 1>",
        "it has small talk, which describes nothing",
    ]


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0), ("ж", 1), ("Ж", 1), ("ー", 1), ("\U00017000", 1), ("ǅж", 0.5), ("°©®ж", 0.25), ("123 -", 0)],
)
def test_what_is_not_latin_is_foreign(text: str, share: float) -> None:
    assert foreign_share(text) == share


def test_a_caption_file_is_read_as_one_line(tmp_path: Path) -> None:
    file = tmp_path / "c.txt"
    file.write_bytes("\ufeff\ufeffA  red\r\n\tshirt \ufeff\n".encode())
    assert read_caption(file) == "A red shirt"
    file.write_bytes(b"a" * 65536)
    assert len(read_caption(file)) == 65536
    file.write_bytes(b"a" * 65537)
    with pytest.raises(InputError, match=r"^The caption .*c\.txt cannot be read: it is larger than 64 KB"):
        read_caption(file)
    for about, shown in (
        ({}, "Check the path, and who may read it."),
        ({"hint": "Look there."}, "Look there."),
    ):
        with pytest.raises(InputError, match="does not exist") as caught:
            read_caption(tmp_path / "none.txt", **about)
        assert caught.value.hint == shown


def test_plain_punctuation_is_welcome() -> None:
    assert (
        lint(
            GOOD.replace(
                "red",
                "rosé & 50 % linen; size < 40, \N{DEGREE SIGN}"
                "\N{RIGHT SINGLE QUOTATION MARK} (new) [old] 模特",
            )
        )
        == []
    )


def test_missing_summary_is_a_problem_but_parses() -> None:
    text = "<IMAGE 1> a <IMAGE 2> b <IMAGE 3> c"
    assert lint(text) == ["no summary before <IMAGE 1>"]
    assert Caption.parse(text).summary == ""


def test_limits() -> None:
    def count(text: str) -> int:
        return len(text.split()) + 1

    assert lint(GOOD, token_counter=count, max_tokens=count(GOOD)) == []
    assert lint(GOOD, token_counter=count, max_tokens=count(GOOD) - 1) == [
        "it is too long: 23 tokens, the text encoder reads 22"
    ]
    assert lint(GOOD, token_counter=count) == [], "without a limit nothing is counted"
    assert len(lint("", token_counter=lambda _: pytest.fail("broken text"), max_tokens=1)) == 3
    assert lint(GOOD, unknown_share=lambda _: 0.1) == []
    assert lint(GOOD, max_words=22) == []
    assert lint(GOOD, max_words=21) == ["it is too long: 22 words, at most 21"]


@pytest.mark.parametrize(
    ("text", "brands", "expected"),
    [
        ("A NIKE shirt by Nike.", ["Nike"], "A <Brand> shirt by <Brand>."),
        ("Nike's", ["nike"], "<Brand>'s"),
        ("Nikelodeon, unNike", ["Nike"], "Nikelodeon, unNike"),
        ("Hugo  Boss and Hugo", ["Hugo", "Hugo Boss"], "<Brand> and <Brand>"),
        ("C&A (c&a)", ["C&A"], "<Brand> (<Brand>)"),
        ("a <BRAND> and <brand>", [], "a <Brand> and <Brand>"),
        (
            "<IMAGE 1> an image of <Brand> by brand",
            ["Image", "Brand", " ", ""],
            "<IMAGE 1> an image of <Brand> by <Brand>",
        ),
        ("Cafe\u0301 shirt", ["Café"], "<Brand> shirt"),
        (".* shirt", [".*"], "<Brand> shirt"),
    ],
)
def test_replace_brand(text: str, brands: list[str], expected: str) -> None:
    assert replace_brand(text, brands) == expected
    assert replace_brand(expected, brands) == expected


def test_brand_left_in_is_a_problem() -> None:
    assert lint(GOOD.replace(BRAND, "Nike"), brands=["Nike"]) == ["a brand name is not written <Brand>"]
    assert lint(GOOD.replace(BRAND, "<brand>")) != []
    assert lint(GOOD, brands=["Nike", "Brand", "Image"]) == []


@given(texts, st.lists(words, max_size=3))
def test_replacing_brands_twice_changes_nothing_more(text: str, brands: list[str]) -> None:
    once = replace_brand(text, brands)
    assert replace_brand(once, brands) == once
    assert marker(1) in replace_brand(f"{marker(1)} {text}", brands)
