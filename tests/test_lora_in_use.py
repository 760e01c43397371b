"""What a LoRA says about itself, and what comes of it in pictures: panels, context, numbers that overflow,
prompts that are cut.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.backbones.registry import load_backbone
from triptych.data.captions import where_cut
from triptych.errors import InputError, ModelError
from triptych.lora.adapter import add_lora, lora_state, save_lora
from triptych.lora.file import read_about
from triptych.sampling.generate import generate_triptych
from triptych.sampling.options import Sampling
from triptych.session import load_models
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.generate import GenerateConfig, generate
from triptych.verbs.tryon import TryonConfig, tryon
from triptych.vton.dress import try_on
from triptych.vton.request import Person

PROMPT = "dress <IMAGE 1> front <IMAGE 2> back <IMAGE 3> worn"
OUTLINE = [[(10.0, 12.0), (30.0, 12.0), (30.0, 50.0)]]


@pytest.fixture(scope="module")
def state(tiny_flux: Path) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 with small random weights for every layer that is trained."""
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    transformer = backbone.load_transformer()
    add_lora(transformer, backbone.lora_layers(transformer), 2, 2, 0.0, 0)
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(tensor.shape, generator=generator) * 0.3
        for key, tensor in lora_state(transformer).items()
    }


def lora(
    folder: Path,
    state: dict[str, torch.Tensor],
    roles: tuple[str, ...] = ("front", "back", "worn"),
    **about: Any,
) -> Path:
    layout = {"width": 32, "height": 48, "roles": list(roles), "columns": len(roles)}
    file = folder / "lora.safetensors"
    save_lora(file, state, 2, 2, {"family": "flux", "layout": layout, **about})
    return file


def picture(seed: int, size: tuple[int, int] = (40, 60)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def inputs(tmp_path: Path, tiny_flux: Path) -> dict[str, Any]:
    picture(1).save(tmp_path / "front.png")
    picture(2).save(tmp_path / "me.png")
    (tmp_path / "p.json").write_text(json.dumps({"polygons": OUTLINE}))
    return {
        "model": str(tiny_flux),
        "device": "cpu",
        "dtype": "fp32",
        "num_inference_steps": 1,
        "prompt": PROMPT,
        "front": tmp_path / "front.png",
    }


@pytest.mark.parametrize(
    "roles",
    [
        ("worn",),
        ("a", "b", "c"),
        ("left", "right"),
        ("worn", "front", "back"),
        ("front", "back"),
        ("front", "label", "worn"),
    ],
    ids=str,
)
def test_panels_that_are_no_garment_and_its_wearer_are_refused_by_name(
    roles: tuple[str, ...], state: dict[str, torch.Tensor], inputs: dict[str, Any], tmp_path: Path
) -> None:
    file = lora(tmp_path, state, roles)
    body = {"person": tmp_path / "me.png", "polygon": tmp_path / "p.json", "out": tmp_path / "new.png"}
    words = f"panels are {', '.join(roles)}|trained to make {roles[-1]} from"
    for call in (
        lambda: tryon(TryonConfig(**inputs, **body, lora=file)),
        lambda: generate(GenerateConfig(**inputs, lora=file, out=tmp_path / "g")),
    ):
        with pytest.raises(InputError, match=words):
            call()
    models = load_models(inputs["model"], [PROMPT], file, device="cpu", dtype="fp32")
    with pytest.raises(InputError, match=words):
        try_on(models, picture(1), picture(1), [Person(picture(2), OUTLINE, PROMPT)])
    if "front" not in roles:
        with pytest.raises(InputError, match="Photos are given of front"):
            generate_triptych(models, [PROMPT], products=[{"front": picture(1)}])


def test_without_photos_any_panels_are_made_inside_the_folder(
    state: dict[str, torch.Tensor], inputs: dict[str, Any], tmp_path: Path
) -> None:
    file = lora(tmp_path, state, ("scene", "worn"))
    generate(GenerateConfig(**{**inputs, "front": None}, lora=file, out=tmp_path / "g")).finish()
    assert sorted(path.stem.rsplit("-", 1)[1] for path in (tmp_path / "g" / "panels").iterdir()) == [
        "scene",
        "worn",
    ]


def test_a_pair_of_front_and_worn_is_enough(
    state: dict[str, torch.Tensor], inputs: dict[str, Any], tmp_path: Path
) -> None:
    file = lora(tmp_path, state, ("front", "worn"))
    body = {"person": tmp_path / "me.png", "polygon": tmp_path / "p.json", "out": tmp_path / "new.png"}
    tryon(TryonConfig(**inputs, **body, lora=file)).finish()
    assert Image.open(tmp_path / "new-triptych.png").size == (64, 48)
    summary = generate(
        GenerateConfig(**inputs, back=tmp_path / "me.png", lora=file, out=tmp_path / "g")
    ).finish()
    assert "The LoRA has no back panel: the back photo is not used." in summary["warnings"]


def test_the_library_samples_as_the_lora_was_trained_unless_told_otherwise(
    state: dict[str, torch.Tensor], inputs: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What `tryon` makes of the same file; a Sampling() of one's own, which is noisy, gets a warning."""
    file = lora(tmp_path, state, context="clean", context_lora=True, context_reading="products")
    models = load_models(inputs["model"], [PROMPT], file, device="cpu", dtype="fp32")
    assert models.layout() == TRY_ON.layout(32, 48)
    options = TryonConfig(**{**inputs, "num_inference_steps": None}, lora=file)
    asked, _ = options.resolve(models.backbone.settings, 0.9, read_about(file))
    assert models.sampling(strength=0.9) == asked and asked.context == "clean"
    person = Person(picture(2), OUTLINE, PROMPT)

    def made(sampling: Sampling | None) -> np.ndarray:
        return np.asarray(try_on(models, picture(1), picture(1), [person], sampling=sampling)[0][0].image)

    default, noisy = made(None), made(Sampling(4))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "trained with clean context" in caplog.text
    assert np.array_equal(default, made(models.sampling())) and (default != noisy).any()
    assert len(caplog.records) == 1
    generate_triptych(models, [PROMPT], sampling=Sampling(1))
    assert len(caplog.records) == 1, "nothing is said twice"
    again = load_models(inputs["model"], [PROMPT], file, device="cpu", dtype="fp32")
    generate_triptych(again, [PROMPT], sampling=Sampling(1))
    assert len(caplog.records) == 2, "generate says it too"


def test_numbers_that_overflow_are_no_picture(
    state: dict[str, torch.Tensor], inputs: dict[str, Any], tmp_path: Path
) -> None:
    """One infinite number in the model, and so NaN everywhere: an error in place of a black picture, which
    names the LoRA.
    """
    file = lora(tmp_path, state)
    for used, words in (
        (file, r"With the LoRA .*lora.safetensors .* not finite"),
        (None, r"^The model's output is not finite"),
    ):
        models = load_models(inputs["model"], [PROMPT], used, device="cpu", dtype="fp32")
        models.transformer.proj_out.weight.data[0, 0] = float("inf")
        for make in (
            lambda models=models: try_on(
                models, picture(1), picture(1), [Person(picture(2), OUTLINE, PROMPT)]
            ),
            lambda models=models: generate_triptych(models, [PROMPT], products=[{"front": picture(1)}]),
            lambda models=models: generate_triptych(models, [PROMPT]),
        ):
            with pytest.raises(ModelError, match=words):
                make()
    models = load_models(inputs["model"], [PROMPT], device="cpu", dtype="fp32")
    models.autoencoder.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        generate_triptych(models, [PROMPT], sampling=Sampling(1))


def test_a_person_without_a_prompt_is_a_sentence(tiny_flux: Path) -> None:
    models = load_models(str(tiny_flux), [PROMPT], device="cpu", dtype="fp32")
    with pytest.raises(InputError, match="no prompt"):
        try_on(models, picture(1), picture(1), [Person(picture(2), OUTLINE)])


# --- Prompts that are cut
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (14, ""),
        (13, "the text of panel 3."),
        (11, "the text of panel 2, and nothing is read of panel 3."),
        (8, "the text of panel 1, and nothing is read of panel 2 and 3."),
        (9, "the text of panel 2, and nothing is read of panel 3."),
        (1, "the summary, and nothing is read of panel 1 and 2 and 3."),
    ],
)
def test_where_a_prompt_is_cut_is_said(limit: int, words: str) -> None:
    """Counted in words here, an end token included: markers are two words, `a b` the summary."""
    text = "a b <IMAGE 1> c d <IMAGE 2> e <IMAGE 3> f g"
    said = where_cut(text, limit, lambda part: len(part.split()) + 1)
    assert (
        said.startswith(f"The prompt has 14 tokens, the model reads {limit}: it is cut in {words}")
        if words
        else said == ""
    )


def test_a_prompt_that_is_cut_is_a_warning_in_every_verb(
    inputs: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tiny model reads 24 tokens; what is lost is the end, the worn panel."""
    inputs["prompt"] = "a dress " + "of red silk " * 10 + PROMPT
    body = {"person": tmp_path / "me.png", "polygon": tmp_path / "p.json"}
    one, other = (
        tryon(TryonConfig(**inputs, **body, out=tmp_path / "new.png")),
        generate(GenerateConfig(**inputs, out=tmp_path / "g")),
    )
    for run in (one, other):
        assert (
            "it is cut in the summary, and nothing is read of panel 1 and 2 and 3"
            in run.summary["warnings"][-1]
        )
    assert caplog.text.count("it is cut in the summary") == 2
    (tmp_path / "jobs.csv").write_text("front,person\nfront.png,me.png\n")
    batch = {
        "front": None,
        "batch": tmp_path / "jobs.csv",
        "polygon": tmp_path / "p.json",
        "out": tmp_path / "out",
    }
    tryon(TryonConfig(**{**inputs, **batch})).finish()
    assert "it is cut in the summary" in (tmp_path / "out" / "results.csv").read_text()


# --- Options that nothing else would notice
# ---------------------------------------------------------------------------


def test_dropping_the_background_changes_what_generate_makes(inputs: dict[str, Any], tmp_path: Path) -> None:
    product = Image.new("RGB", (128, 192), "white")
    product.paste(picture(5, (24, 32)), (52, 80))
    product.save(tmp_path / "front.png")
    worn = []
    for drop in (False, True):
        panels = {"panel_width": 128, "panel_height": 192}
        config = GenerateConfig(
            **inputs, **panels, context="clean", drop_background=drop, out=tmp_path / str(drop)
        )
        (made,) = generate(config).finish()["images"]
        worn.append(np.asarray(Image.open(made).crop((256, 0, 384, 192)), int))
    assert np.abs(worn[0] - worn[1]).max() > 2
