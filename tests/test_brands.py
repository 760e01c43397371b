"""Brands in captions: every way to write a name is found, and no common word is taken for one."""

from __future__ import annotations

import pytest

from triptych.data.captions import lint, replace_brand, replaced_brands

COMMON = ["On", "Next", "Gap", "Guess"]


@pytest.mark.parametrize(
    "text",
    [
        "A woman on a chair leans on a wall next to a gap; I guess it fits.",
        "On a chair sits a woman. Next to her is a wall.",
        "Gap in the hem. Guess what.",
        "On-trend look, hands-on.",
    ],
)
def test_common_words_stay(text: str) -> None:
    assert replace_brand(text, COMMON) == text


@pytest.mark.parametrize(
    ("text", "brand", "expected"),
    [
        ("The On logo, ON shoes", "On", "The <Brand> logo, <Brand> shoes"),
        ("Gap jeans by gap", "Gap", "<Brand> jeans by gap"),
        ("express delivery, Express shirt", "express", "express delivery, <Brand> shirt"),
        ("people free to go, Free People", "Free People", "people free to go, <Brand>"),
        ("the row of buttons; The Row coat", "The Row", "the row of buttons; <Brand> coat"),
        ("an off-white shirt, an Off-White shirt", "Off-White", "an off-white shirt, an <Brand> shirt"),
        ("mango yellow. A Mango blouse", "Mango", "mango yellow. A <Brand> blouse"),
        ("an old navy sweater, Old Navy's", "Old Navy", "an old navy sweater, <Brand>'s"),
        ("Levi’s and LEVI'S, Levis, Levi`s", "Levi's", "<Brand> and <Brand>, <Brand>, <Brand>"),
        ("Levi's", "Levi’s", "<Brand>"),
        ("H & M, H&M, h&m, H and M", "H&M", "<Brand>, <Brand>, <Brand>, <Brand>"),
        ("Hermes, Hermès, HERMÈS", "Hermès", "<Brand>, <Brand>, <Brand>"),
        ("Hermès", "Hermes", "<Brand>"),
        ("Calvin-Klein, CalvinKlein, Calvin Klein’s", "Calvin Klein", "<Brand>, <Brand>, <Brand>’s"),
        ("Ray\u2011Ban Ray Ban RayBan", "Ray-Ban", "<Brand> <Brand> <Brand>"),
        ("Dr Martens and Dr. Martens.", "Dr. Martens", "<Brand> and <Brand>."),
        ("APC, by A.P.C. and", "A.P.C.", "<Brand>, by <Brand> and"),
        ("Strasse", "Straße", "<Brand>"),
        ("nothing \xa8 to find", "\xa8", "nothing \xa8 to find"),
        ("Bjorn and Ægir", "Bjørn", "<Brand> and Ægir"),
        ("by +++ now", "+++", "by <Brand> now"),
        ("Yes+No, YesNo", "Yes+No", "<Brand>, YesNo"),
        ("by A.P.C. (new)", "A.P.C.", "by <Brand>. (new)"),
        ("new, & Other Stories", "& Other Stories", "new, <Brand>"),
        ("a Therow, The Row coat", "The Row", "a Therow, <Brand> coat"),
        ("a Free people sign, Free People", "Free People", "a Free people sign, <Brand>"),
        ("a Made in Love coat, a Made in love one", "Made in Love", "a <Brand> coat, a Made in love one"),
        ("an A day out, A Day bag", "A Day", "an A day out, <Brand> bag"),
        ("The Row is a shop", "The Row", "<Brand> is a shop"),
        ("J is a letter, a j and a J bag", "J", "J is a letter, a j and a <Brand> bag"),
        ("J shirts, the J shirts", "J", "J shirts, the <Brand> shirts"),
        ("ON is new. On chairs it lies", "On", "<Brand> is new. On chairs it lies"),
        ("Nikelodeon unNike Nike-style nike", "Nike", "Nikelodeon unNike <Brand>-style <Brand>"),
    ],
)
def test_names_are_found_as_people_write_them(text: str, brand: str, expected: str) -> None:
    assert replace_brand(text, [brand]) == expected
    assert replace_brand(expected, [brand]) == expected


def test_the_longest_name_counts() -> None:
    assert replace_brand("a Nike Kids shirt", ["Nike", "Nike Kids"]) == "a <Brand> shirt"


def test_a_word_that_is_no_name_hides_no_name_that_begins_within_it() -> None:
    assert replace_brand("an 'on-nike shoe", ["'On", "On-Nike"]) == "an '<Brand> shoe"


def test_replacements_are_counted_and_what_is_left_is_a_problem() -> None:
    text, counts = replaced_brands("Nike and NIKE by Levi’s", ["Nike", "Levi's"])
    assert (text, counts) == ("<Brand> and <Brand> by <Brand>", {"Nike": 2, "Levi's": 1})
    caption = "A Levi’s shirt. <IMAGE 1> a <IMAGE 2> b <IMAGE 3> c"
    assert lint(caption, brands=["Levi's"]) == ["a brand name is not written <Brand>"]
    assert lint(caption.replace("Levi’s", "nice next"), brands=["Next"]) == []
