"""Answers in any dress: the order check reads what is plainly said, captions lose what is not about the
picture and nothing else.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.caption_server import HOSTILE
from triptych.captioning.order import read_order
from triptych.captioning.questions import questions_about
from triptych.captioning.undress import plain_caption
from triptych.data.captions import lint, normalise
from triptych.tasks.tryon import TRY_ON

NUMBERS = questions_about(TRY_ON.layout(1, 1)).numbers


def _plain(answer: str) -> str:
    return plain_caption(answer, 3, NUMBERS)


RIGHT = ["garment", "garment", "person"]
ORDERS = [
    "garment，garment，person。",
    "| Panel | Content |\n|---|---|\n| 1 | garment |\n| 2 | garment |\n| 3 | person |",
    "| Panel 3 | person | wears it |\n| Panel 1 | garment | front |\n| Panel 2 | garment | back |",
    "👕 garment, 👕 garment, 🧍‍♀️ person ✅",
    "$$\\text{garment, garment, person}$$",
    "Left → garment; middle → garment; right → person",
    "1 -> garment\n2 -> garment\n3 -> person",
    "gar\u00adment, garment,\u200b person",
    "garment, garment, person",
    " Garment,garment , PERSON.\n",
    "<think>person, person?</think>\n\ngarment, garment, person",
    "no opening tag</think>garment, garment, person",
    "<think>so it is\n\ngarment, garment, person",
    "[THINK]hm[/THINK]garment, garment, person",
    "◁think▷hm◁/think▷garment, garment, person",
    "<|channel|>analysis<|message|>person?<|end|><|start|>assistant<|channel|>final<|message|>garment, "
    "garment, person<|return|>",
    "```\ngarment, garment, person\n```",
    "```text\ngarment, garment, person\n```",
    "1. garment\n2. garment\n3. person",
    "1) Garment 2) Garment 3) Person",
    "[1] garment\n[2] garment\n[3] person",
    "3. person\n1. garment\n2. garment",  # labelled: the labels count, not the place
    "- garment\n- garment\n- person",
    "**garment, garment, person**",
    "*garment*, *garment*, *person*",
    "`garment, garment, person`",
    '"garment, garment, person"',
    "> garment, garment, person",
    "garment | garment | person",
    "| garment | garment | person |",
    "garment → garment → person",
    "garment/garment/person",
    "garment garment person",
    "garment, garment, and person",
    "garment、garment、person",
    "Answer: garment, garment, person",
    "**Answer:** garment, garment, person.",
    "### Answer\ngarment, garment, person",
    "The order is correct: garment, garment, person",
    "Sure! Here are the three words:\n\ngarment, garment, person\n\nLet me know!",
    "garment, garment, person\n\nThe first panel shows a shirt, the second its back.",
    "Panel 1: garment\nPanel 2: garment\nPanel 3: person",
    "Left: garment; Middle: garment; Right: person",
    "The first panel is a garment, the second panel is a garment, and the third panel shows a person.",
    "First: garment. Second: garment. Third: person.",
    "1. Garment (front view)\n2. Garment (back view, no person)\n3. Person (wearing the shirt)",
    "clothing, clothing, woman",
    "product photo, product photo, person",
    "<answer>garment, garment, person</answer>",
    "<|begin_of_box|>garment, garment, person<|end_of_box|>",
    "\\boxed{garment, garment, person}",
    "garment, garment, person<|im_end|>",
    "garment, garment, person</s>",
    '{"panels": ["garment", "garment", "person"]}',
    '{"order": "garment, garment, person"}',
    '["garment", "garment", "person"]',
    "['garment', 'garment', 'person']",
    '```json\n{"answer": "garment, garment, person", "reason": "two products, then a person"}\n```',
    '{"1": "garment", "2": "garment", "3": "person"}',
    '{"person": 1, "panel_3": "person", "panel_1": "garment", "panel_2": "garment"}',
    '[{"panel": 1, "type": "garment"}, {"panel": 2, "type": "garment"}, {"panel": 3, "type": "person"}]',
    '{"left": "garment", "middle": "garment", "right": "person"}',
    '{"panels": {"1": "garment", "2": "garment", "3": "person"}, "confidence": 0.9}',
]


@pytest.mark.parametrize("answer", ORDERS)
def test_order_is_read_in_any_dress(answer: str) -> None:
    assert read_order(answer) == RIGHT
    wrong = (
        answer.replace("person", "garment")
        .replace("Person", "garment")
        .replace("PERSON", "garment")
        .replace("woman", "garment")
    )
    assert read_order(wrong) in (["garment"] * 3, None)  # never what it does not say


@pytest.mark.parametrize(
    "answer",
    [
        *HOSTILE,
        "",
        "I think garment, garment, person",
        "❌ garment, garment, person",
        "garment (worn by a person), garment, person",
    ],
)
def test_what_is_not_plainly_an_order_is_not_read(answer: str) -> None:
    assert read_order(answer) is None


def test_another_order_is_read_as_such() -> None:
    assert read_order("```\nperson, garment, garment\n```") == ["person", "garment", "garment"]


HOUSE = "A grey shirt. <IMAGE 1> The front. <IMAGE 2> The back. <IMAGE 3> A man."
CAPTIONS = [
    "A grey shirt. **IMAGE 1:** The front. **IMAGE 2:** The back. **IMAGE 3:** A man.",
    r"A grey shirt. \<IMAGE 1\> The front. \<IMAGE 2\> The back. \<IMAGE 3\> A man.",
    f"{HOUSE}\n\nNote: I left out identity, as asked.",
    f"{HOUSE}\n\n(Note that the brand was replaced.)",
    HOUSE.replace("front", "fr\u00adont 👕").replace("back", "\u200bback"),
    "Sure! Here is the description in the requested form: **Summary:** A grey shirt. **<IMAGE 1>** The "
    "front. **<IMAGE 2>** The back. "
    "**<IMAGE 3>** A man.",
    f"```\n{HOUSE}\n```",
    f"<think>I need <IMAGE 1> first</think>{HOUSE}",
    f'{{"caption": "{HOUSE}"}}',
    f'{{"response": {{"caption": "{HOUSE}"}}}}',
    '{"summary": "A grey shirt.", "panels": ["The front.", "The back.", "A man."]}',
    '```json\n{"summary": "A grey shirt.", "image_1": "The front.", "image_2": "The back.", "image_3": "A '
    'man."}\n```',
    '{"summary": "A grey shirt.", "front": "The front.", "back": "The back.", "person": "A man."}',
    '{"panels": [{"description": "The front."}, {"description": "The back."}, {"description": "A man."}], '
    '"summary": "A grey shirt."}',
    '["A grey shirt.", "The front.", "The back.", "A man."]',
    f'"{HOUSE}"',
    f"> {HOUSE}",
    f"Caption: {HOUSE}",
    f"**Caption:**\n\n{HOUSE}\n\n(27 words)",
    f"{HOUSE}\n\nLet me know if you'd like changes!",
    f'Certainly! Here’s the caption:\n\n"{HOUSE}"\n\nWould you like me to adjust the tone?',
    f"Okay, here is a description of the picture, as requested:\n\n{HOUSE}<|im_end|>",
    f"I'd be happy to help! {HOUSE} I hope this helps.",
    f"<answer>{HOUSE}</answer>",
    "### Summary\nA grey shirt.\n\n### <IMAGE 1>\nThe front.\n\n### <IMAGE 2>\nThe back.\n\n### <IMAGE 3>\nA "
    "man.",
    "A grey shirt.\n\n**<IMAGE 1>:** The front.\n\n**<IMAGE 2>:** The back.\n\n**<IMAGE 3>:** A "
    "man.\n\n---\n\nFeel free to ask for more.",
    "1. A grey shirt.\n2. <IMAGE 1> The front.\n3. <IMAGE 2> The back.\n4. <IMAGE 3> A man.",
    "A grey shirt. <image 1> The front. <IMAGE_2> The back. < IMAGE 3 > A man.",
    "A grey shirt. &lt;IMAGE 1&gt; The front. [IMAGE 2] The back. <IMAGE 3> A man.",
    "A grey shirt. <IMAGE 1> The front.</IMAGE 1> <IMAGE 2> The back.</IMAGE 2> <IMAGE 3> A man.</IMAGE 3>",
    "A grey shirt.\nIMAGE 1: The front.\nIMAGE 2: The back.\nImage 3: A man.",
]


@pytest.mark.parametrize("answer", CAPTIONS)
def test_captions_lose_their_dress(answer: str) -> None:
    assert normalise(_plain(answer)) == HOUSE
    assert lint(_plain(answer)) == []


@pytest.mark.parametrize(
    "text",
    [
        "Great coat in wool, three views. <IMAGE 1> A sure-fit coat: blue, 5 * 3 cm. <IMAGE 2> Note: a "
        "snake_case print. <IMAGE 3> A man.",
        "This is a linen shirt: blue. <IMAGE 1> a - b <IMAGE 2> If you look closely, a 1. collar. <IMAGE 3> "
        "Here is a man: tall.",
    ],
)
def test_text_between_the_markers_is_never_lost(text: str) -> None:
    assert normalise(_plain(text)) == text


def test_lists_between_the_markers_become_sentences() -> None:
    answer = "Sum. <IMAGE 1> Front.\n- **Collar:** round\n- **Sleeves:** long\n<IMAGE 2> Back. <IMAGE 3> Man."
    assert (
        normalise(_plain(answer))
        == "Sum. <IMAGE 1> Front. Collar: round. Sleeves: long. <IMAGE 2> Back. <IMAGE 3> Man."
    )


words = st.sampled_from(
    [
        "garment",
        "person",
        "<IMAGE 1>",
        "**",
        "```",
        "{",
        '"',
        "[",
        "<think>",
        "</think>",
        "Sure!",
        ":",
        "\n",
        "1.",
        "x",
        "&lt;",
    ]
)


@given(st.one_of(st.text(max_size=200), st.lists(words, max_size=40).map(" ".join)))
def test_no_answer_breaks_the_readers(answer: str) -> None:
    assert read_order(answer) is None or set(read_order(answer) or []) <= {"garment", "person"}
    assert isinstance(_plain(answer), str)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HOUSE.replace("grey", "**grey**"), "markdown"),
        (f"# Summary {HOUSE}", "markdown"),
        (f"Sure! {HOUSE}", "small talk"),
        (f"{HOUSE} Let me know if you need more.", "small talk"),
        (f'{{"caption": "{HOUSE}"}}', "JSON"),
        (f"{HOUSE}<|endoftext|>", "special tokens"),
        (f"{HOUSE}</s>", "special tokens"),
        (f"[INST] {HOUSE}", "special tokens"),
        (
            "三张图片展示同一件衬衫。<IMAGE 1> 正面。<IMAGE 2> 背面。<IMAGE 3> 一个男人。",
            "write it in English",
        ),
        ("Серая рубашка. <IMAGE 1> Спереди. <IMAGE 2> Сзади. <IMAGE 3> Мужчина.", "write it in English"),
        ("قميص رمادي <IMAGE 1> الأمام <IMAGE 2> الخلف <IMAGE 3> رجل", "write it in English"),
        ("👕👕 <IMAGE 1> 👕👗 <IMAGE 2> 👗👗 <IMAGE 3> 🧍🧍", "write it in English"),
    ],
)
def test_captions_of_the_users_own_are_warned_about(text: str, problem: str) -> None:
    assert [one for one in lint(text) if problem in one], lint(text)


def test_what_stands_for_a_brand_is_the_house_word() -> None:
    assert _plain(HOUSE.replace("shirt", "[Brand] shirt by {brand name}")) == HOUSE.replace(
        "shirt", "<Brand> shirt by <Brand>"
    )


def test_signs_that_mean_something_stay() -> None:
    text = HOUSE.replace("front", 'front, 2" cuffs, 50 % cotton & size < XL, note pockets [sic]')
    assert _plain(text) == text and lint(text) == []
    panel = "A grey shirt. Image 2: not in order. Image 1: so it stays. Image 3: as it is."
    assert "<IMAGE" not in _plain(panel)
