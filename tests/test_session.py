"""A session: a model opened once, its files read once, pictures in memory as the commands make them."""

from __future__ import annotations

import builtins
import io
import json
import logging
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import triptych.lora.file
from triptych import Session
from triptych.backbones import settings
from triptych.backbones.contract import Backbone
from triptych.backbones.registry import load_backbone
from triptych.errors import InputError, ModelError
from triptych.lora.adapter import add_lora, lora_state, save_lora
from triptych.pictures.panels import concatenate
from triptych.tasks.tryon import TRY_ON
from triptych.verbs.generate import GenerateConfig, generate
from triptych.verbs.tryon import TryonConfig, tryon

PROMPT = "dress <IMAGE 1> front <IMAGE 2> back <IMAGE 3> worn"
OUTLINE = [[(10.0, 12.0), (30.0, 12.0), (30.0, 50.0)]]
LAYOUT = TRY_ON.layout(32, 48)
QUICK: dict[str, Any] = {"device": "cpu", "dtype": "fp32"}


def picture(seed: int, size: tuple[int, int] = (40, 60)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def lora(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained with clean context that the LoRA itself does not read: it is switched off meanwhile."""
    backbone = load_backbone(str(tiny_flux), "cpu", "fp32")
    transformer = backbone.load_transformer()
    add_lora(transformer, backbone.lora_layers(transformer), 2, 2, 0.0, 0)
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(v.shape, generator=generator) * 0.3 for k, v in lora_state(transformer).items()}
    file = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    about = {"family": "flux", "layout": LAYOUT.to_dict(), "context": "clean", "context_reading": "products"}
    save_lora(file, state, 2, 2, about)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seed in (("front", 1), ("back", 2), ("me", 3)):
        picture(seed).save(tmp_path / f"{name}.png")
    (tmp_path / "p.json").write_text(json.dumps({"polygons": OUTLINE}))
    return tmp_path


def options(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    given = {"front": folder / "front.png", "back": folder / "back.png", "model": str(model)}
    return {**given, **QUICK, "prompt": PROMPT, "num_inference_steps": 2, **changes}


def body(folder: Path) -> dict[str, Path]:
    return {"person": folder / "me.png", "polygon": folder / "p.json", "out": folder / "new.png"}


def carried(path: Path) -> dict[str, Any]:
    return json.loads(Image.open(path).text["triptych"])  # type: ignore[attr-defined]


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened, by name: in Python, and by safetensors."""
    seen: Counter[str] = Counter()
    for owner, name in ((builtins, "open"), (io, "open"), (triptych.lora.file, "safe_open")):
        real = getattr(owner, name)

        def count(path: Any, *rest: Any, real: Any = real, **more: Any) -> Any:
            seen[Path(path).name if isinstance(path, str | Path) else ""] += 1
            return real(path, *rest, **more)

        monkeypatch.setattr(owner, name, count)
    return seen


def test_a_lora_is_read_for_its_header_its_tensors_and_its_hash_once(
    tiny_flux: Path, lora: Path, folder: Path, opened: Counter[str]
) -> None:
    triptych.lora.file._read_header.cache_clear()
    tryon(TryonConfig(**options(tiny_flux, folder, lora=lora), **body(folder))).finish()
    assert opened["lora.safetensors"] == 3

    triptych.lora.file._read_header.cache_clear()
    opened.clear()
    lines = [f"front.png,me.png,p.json,{seed}" for seed in range(4)]
    (folder / "jobs.csv").write_text("\n".join(["front,person,polygon,seed", *lines]))
    base = {**options(tiny_flux, folder, lora=lora), "front": None, "back": None}
    batch = TryonConfig(**base, batch=folder / "jobs.csv", out=folder / "many")
    assert tryon(batch).finish()["made"] == 4
    assert opened["lora.safetensors"] == 3
    opened.clear()
    assert tryon(batch).finish()["kept"] == 4
    assert opened["lora.safetensors"] == 1, "its hash; the header is known, and nothing is loaded"


def test_no_warning_is_logged_twice(
    tiny_flux: Path, lora: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"front.png,me.png,p.json,{seed},{seed / 4 + 0.5}" for seed in range(3)]
    (folder / "jobs.csv").write_text("\n".join(["front,person,polygon,seed,strength", *lines]))
    base = {**options(tiny_flux, folder, lora=lora, context="noisy"), "front": None, "back": None}
    tryon(TryonConfig(**base, batch=folder / "jobs.csv", out=folder / "many")).finish()
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == len(set(said)) and sum("clean context" in words for words in said) == 1


def test_a_hub_id_is_asked_for_once(tiny_flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: Counter[str] = Counter()

    def download(model: str, file: str) -> str:
        asked[file] += 1
        return str(tiny_flux / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    settings._from_hub.cache_clear()
    try:
        for _ in range(3):
            settings.model_settings("somebody/a-model")
            settings.part_config("somebody/a-model", "transformer/config.json")
        assert asked == {"model_index.json": 1, "transformer/config.json": 1}
    finally:
        settings._from_hub.cache_clear()


@pytest.mark.parametrize("with_lora", [True, False])
def test_memory_and_command_line_make_the_same_try_on(
    tiny_flux: Path, lora: Path, folder: Path, with_lora: bool
) -> None:
    used = lora if with_lora else None
    more = {"rough": "paint", "expand": "hull", "grow": 2, "feather": 4, "crop_margin": 0.8}
    config = TryonConfig(
        **options(tiny_flux, folder, lora=used, seed=7, strength=0.8), **body(folder), **more
    )
    tryon(config).finish()
    session = Session(str(tiny_flux), used, **QUICK)
    (made,) = session.try_on(
        picture(1),
        picture(2),
        picture(3),
        polygons=OUTLINE,
        prompt=PROMPT,
        seeds=[7],
        strength=0.8,
        num_inference_steps=2,
        **more,
    )
    assert same(made.image, Image.open(folder / "new.png"))
    assert same(made.triptych, Image.open(folder / "new-triptych.png"))
    kept = made.mask == 0
    assert kept.any() and np.array_equal(np.asarray(made.image)[kept], np.asarray(picture(3))[kept])
    written, said = carried(folder / "new.png"), dict(made.settings)
    hashes, own = written.pop("sha256"), said.pop("sha256")
    assert said == written and {*hashes} - {*own} == {"front", "back", "person", "polygon"}
    assert own == ({"lora": hashes["lora"]} if with_lora else {})


def test_memory_and_command_line_generate_the_same(tiny: Path, folder: Path) -> None:
    summary = generate(GenerateConfig(**options(tiny, folder), out=folder / "g", seed=3)).finish()
    session = Session(str(tiny), **QUICK)
    first, again = session.generate(picture(1), picture(2), PROMPT, [3, 4], num_inference_steps=2)
    path = Path(summary["images"][0])
    assert same(first.triptych, Image.open(path)) and not same(first.image, again.image)
    assert same(first.image, first.triptych.crop(LAYOUT.box("worn"))) and first.made == ("worn",)
    written = carried(path)
    assert {**written, "sha256": {}} == first.settings
    (whole,) = session.generate(prompt=PROMPT, num_inference_steps=1)
    assert whole.image.size == LAYOUT.size and whole.made == LAYOUT.roles and whole.mask.all()
    with pytest.raises(InputError, match="no prompt"):
        session.generate(picture(1))
    with pytest.raises(InputError, match="without a front"):
        session.generate(back=picture(1), prompt=PROMPT)


def test_prompts_are_encoded_at_any_time_and_the_text_encoder_is_gone_unless_kept(
    tiny_flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    for name in ("load_text_encoder", "load_transformer", "load_autoencoder"):
        real = getattr(Backbone, name)
        monkeypatch.setattr(
            Backbone, name, lambda self, real=real, name=name: order.append(name) or real(self)
        )
    session = Session(str(tiny_flux), **QUICK)
    assert order == []
    session.encode(["one"])
    (first,) = session.generate(prompt="two", num_inference_steps=1)
    assert order == ["load_text_encoder", "load_text_encoder", "load_transformer", "load_autoencoder"]
    assert session._encoder is None
    keeping = Session(str(tiny_flux), keep_text_encoder=True, **QUICK)
    order.clear()
    for prompt in ("one", "two"):
        (last,) = keeping.generate(prompt=prompt, num_inference_steps=1)
    assert order == ["load_text_encoder", "load_transformer", "load_autoencoder"]
    assert same(first.image, last.image)


def test_threads_make_what_one_after_another_makes(tiny_flux: Path, lora: Path) -> None:
    """The LoRA is switched off on the shared layers while known panels are read: without a lock, some of
    these pictures would be made without it.
    """

    def one(session: Session, number: int) -> bytes:
        if number % 2:
            (made,) = session.generate(picture(number), None, f"p{number}", [number], num_inference_steps=3)
        else:
            (made,) = session.try_on(
                picture(number),
                None,
                picture(20 + number),
                polygons=OUTLINE,
                prompt=f"p{number}",
                seeds=[number],
                num_inference_steps=3,
            )
        return made.triptych.tobytes()

    alone = Session(str(tiny_flux), lora, **QUICK)
    expected = [one(alone, number) for number in range(8)]
    assert len({*expected}) == 8
    shared, found = Session(str(tiny_flux), lora, **QUICK), dict[int, bytes]()
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: one(shared, number)}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(8)] == expected


def test_a_triptych_of_ones_own_is_repainted_inside_the_mask_alone(tiny: Path) -> None:
    """What the original project does: panels side by side, a mask over the whole canvas, a prompt."""
    session = Session(str(tiny), **QUICK)
    panels = [picture(seed, (32, 48)) for seed in (1, 2, 3)]
    canvas = concatenate(panels, LAYOUT)
    mask = np.zeros((48, 96), np.uint8)
    mask[10:40, 70:90] = 255
    first, other = session.repaint(canvas, mask=mask, prompt=PROMPT, seeds=[1, 2], num_inference_steps=3)
    before, after = np.asarray(canvas), np.asarray(first.image)
    assert np.array_equal(after[mask == 0], before[mask == 0])
    assert (after[mask > 0] != before[mask > 0]).mean() > 0.5 and not same(first.image, other.image)
    assert first.made == ("worn",) and first.settings["verb"] == "repaint"
    (worn,) = session.try_on(
        panels[0],
        panels[1],
        panels[2],
        mask=mask[:, 64:],
        prompt=PROMPT,
        seeds=[1],
        crop="none",
        feather=0,
        num_inference_steps=3,
    )
    assert same(first.image.crop(LAYOUT.box("worn")), worn.image), "the same picture as try-on makes"
    outline = [[(70.0, 10.0), (90.0, 10.0), (90.0, 40.0), (70.0, 40.0)]]
    (drawn,) = session.repaint(canvas, polygons=outline, prompt=PROMPT, seeds=[1], num_inference_steps=3)
    assert same(drawn.image, first.image)


@pytest.mark.parametrize("size", [(150, 77), (300, 300), (99, 48)], ids=str)
def test_a_triptych_of_any_size_keeps_it(tiny_flux: Path, lora: Path, size: tuple[int, int]) -> None:
    session = Session(str(tiny_flux), lora, **QUICK)
    canvas = picture(5, size)
    mask = np.zeros(size[::-1], np.uint8)
    mask[20:40, size[0] // 3 - 10 : size[0] // 3 + 10] = 255  # over an edge between two panels
    (made,) = session.repaint(canvas, mask=mask, prompt=PROMPT, num_inference_steps=1)
    before, after = np.asarray(canvas), np.asarray(made.image)
    assert after.shape == before.shape and np.array_equal(after[mask == 0], before[mask == 0])
    assert made.made == ("front", "back")


def test_what_cannot_be_repainted_is_a_sentence(tiny_flux: Path) -> None:
    session = Session(str(tiny_flux), **QUICK)
    canvas, mask = picture(1, (96, 48)), np.full((48, 96), 255, np.uint8)
    with pytest.raises(InputError, match="cannot be cut"):
        session.repaint(picture(1, (100, 48)), mask=np.full((48, 100), 255, np.uint8), prompt=PROMPT)
    with pytest.raises(InputError, match="polygons or a mask"):
        session.repaint(canvas, prompt=PROMPT)
    with pytest.raises(InputError, match="no prompt"):
        session.repaint(canvas, mask=mask)
    with pytest.raises(InputError, match="front is a str, not a PIL image"):
        session.try_on("front.png", None, canvas, mask=mask, prompt=PROMPT)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="No model"):
        Session(" ")


def test_the_first_example_of_the_readme_runs(
    tiny_flux: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands there, but for the model, the LoRA and how many steps it takes."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = next(part.split("```")[0] for part in text.split("```python\n") if "Session(" in part)
    for old, new in (("black-forest-labs/FLUX.1-dev", str(tiny_flux)), ("work/lora", str(lora))):
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    for name in ("front.jpg", "back.jpg", "me.jpg"):
        picture(len(name), (600, 800)).save(name)
    names: dict[str, Any] = {}
    exec(code, names)
    made = names["second"]
    assert names["worn"].image.size == (LAYOUT.width, LAYOUT.height)
    assert same(Image.open("new.png"), names["first"].image) and made.image.size == (600, 800)
    kept = made.mask == 0
    assert np.array_equal(np.asarray(made.image)[kept], np.asarray(Image.open("me.jpg"))[kept])
