"""embed: exact latents, text by caption, and a second run that does nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from PIL import Image

from triptych.data.embeddings import EMPTY, INDEX, TEXTS, EmbeddingFolder, load_record
from triptych.errors import WorkError
from triptych.store.files import write_jsonl
from triptych.verbs.embed import EmbedConfig, embed


def write_triptychs(folder: Path, count: int, size: tuple[int, int] = (96, 48)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"item-{number}.png")
        (folder / f"item-{number}.txt").write_text(
            f"summary <IMAGE 1> dress {number} <IMAGE 2> back <IMAGE 3> person"
        )


def config(work: Path, model: Path, **changes) -> EmbedConfig:
    return EmbedConfig(work=work, model=str(model), device="cpu", dtype="fp32", **changes)


def encode(pipe: DiffusionPipeline, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """States and pooled vector as a family's own pipeline computes them."""
    if isinstance(pipe, FluxPipeline):
        return pipe.encode_prompt(prompt, None, max_sequence_length=24)[:2]
    states, _, pooled, _ = pipe.encode_prompt(
        prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=24
    )
    return states, pooled


@pytest.mark.parametrize("tiny", ["flux", "sd3"], indirect=True)
def test_records_hold_what_diffusers_computes(tmp_path: Path, tiny: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 3)
    summary = embed(config(tmp_path, tiny, batch_size=2)).finish()
    assert summary["embedded"] == 3
    pipe = DiffusionPipeline.from_pretrained(tiny)
    data = EmbeddingFolder(Path(summary["folder"]))
    assert data.ids == ["item-0", "item-1", "item-2"]
    for id in data.ids:
        record = data[id]
        pixels = (
            torch.from_numpy(np.array(Image.open(tmp_path / "triptychs" / f"{id}.png"))).permute(2, 0, 1)[
                None
            ]
            / 127.5
            - 1
        )
        posterior = pipe.vae.encode(pixels).latent_dist
        assert torch.allclose(record.latent_mean_CHW, ((posterior.mean - 0.12) * 0.36)[0], atol=1e-5)
        assert torch.allclose(record.latent_std_CHW, (posterior.std * 0.36)[0], atol=1e-5)
        caption = (tmp_path / "triptychs" / f"{id}.txt").read_text()
        states, pooled = encode(pipe, caption)
        assert torch.allclose(record.text["prompt_embeds"], states[0], atol=1e-5)
        assert torch.allclose(record.text["pooled_prompt_embeds"], pooled[0], atol=1e-5)
    empty, _ = encode(pipe, "")
    assert torch.allclose(data.empty["prompt_embeds"], empty[0], atol=1e-5)


def test_a_second_run_does_nothing_and_a_changed_triptych_is_done_again(
    tmp_path: Path, tiny_flux: Path
) -> None:
    write_triptychs(tmp_path / "triptychs", 3)
    embed(config(tmp_path, tiny_flux)).finish()
    folder = tmp_path / "embeddings" / "flux"
    times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.suffix == ".safetensors"}
    again = embed(config(tmp_path, tiny_flux)).finish()
    assert (again["embedded"], again["kept"]) == (0, 3)
    assert times == {
        file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.suffix == ".safetensors"
    }
    (tmp_path / "triptychs" / "item-1.txt").write_text("another <IMAGE 1> a <IMAGE 2> b <IMAGE 3> c")
    third = embed(config(tmp_path, tiny_flux)).finish()
    assert (third["embedded"], third["kept"]) == (1, 2)
    (folder / "item-0.safetensors").write_bytes(b"damaged")
    assert embed(config(tmp_path, tiny_flux)).finish()["embedded"] == 1
    assert load_record(folder / "item-0.safetensors").id == "item-0"


def test_the_text_of_a_caption_is_stored_once(tmp_path: Path, tiny_flux: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 3)
    for number in (0, 1):
        (tmp_path / "triptychs" / f"item-{number}.txt").write_text("one <IMAGE 1> a <IMAGE 2> b <IMAGE 3> c")
    embed(config(tmp_path, tiny_flux)).finish()
    folder = EmbeddingFolder(tmp_path / "embeddings" / "flux")
    texts = sorted((folder.path / TEXTS).iterdir())
    assert len(texts) == 2
    a, b, c = (folder[f"item-{number}"].text["prompt_embeds"].clone() for number in range(3))
    assert torch.equal(a, b) and not torch.equal(a, c)
    for text in texts:
        text.write_bytes(text.read_bytes()[:-8])
    assert embed(config(tmp_path, tiny_flux)).finish()["embedded"] == 3
    again = EmbeddingFolder(folder.path)
    assert torch.equal(again["item-0"].text["prompt_embeds"], a)


def test_triptychs_without_caption_are_named(tmp_path: Path, tiny_flux: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 3)
    (tmp_path / "triptychs" / "item-0.txt").unlink()
    (tmp_path / "triptychs" / "item-1.txt").write_text("  ")
    summary = embed(config(tmp_path, tiny_flux)).finish()
    assert (summary["embedded"], summary["rejected"]) == (1, 2)
    rejects = (tmp_path / "embeddings" / "flux" / "embed.rejects.jsonl").read_text()
    assert "item-0.txt is missing" in rejects
    assert "item-1.txt is empty" in rejects


def test_layout_comes_from_the_metadata(tmp_path: Path, tiny_flux: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 1, (64, 96))
    layout = {"width": 32, "height": 48, "roles": ["front", "back", "worn", "detail"], "columns": 2}
    write_jsonl(
        tmp_path / "triptychs" / "metadata.jsonl",
        [{"file_name": "item-0.png", "id": "item-0", "layout": layout}],
    )
    embed(config(tmp_path, tiny_flux)).finish()
    record = load_record(tmp_path / "embeddings" / "flux" / "item-0.safetensors")
    assert record.layout.rows == 2
    assert record.latent_mean_CHW.shape == (16, 12, 8)


def test_another_precision_and_another_layout_are_not_the_old_record(tmp_path: Path, tiny_flux: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 1)
    options = {"work": tmp_path, "model": str(tiny_flux), "device": "cpu"}
    assert embed(EmbedConfig(**options, dtype="bf16")).finish()["embedded"] == 1
    file = tmp_path / "embeddings" / "flux" / "item-0.safetensors"
    rough = load_record(file)
    assert embed(EmbedConfig(**options, dtype="fp32")).finish()["embedded"] == 1
    fine = load_record(file)
    assert not torch.equal(rough.text["prompt_embeds"].float(), fine.text["prompt_embeds"].float())
    assert (fine.layout_by, fine.item) == ("guess", "")
    layout = {"width": 96, "height": 16, "roles": ["worn", "front", "back"], "columns": 1}
    write_jsonl(
        tmp_path / "triptychs" / "metadata.jsonl",
        [{"file_name": "item-0.png", "layout": layout, "item": "裙子"}],
    )
    summary = embed(EmbedConfig(**options, dtype="fp32")).finish()
    assert (summary["kept"], summary["embedded"], summary["layouts_guessed"]) == (1, 0, 0)
    told = load_record(file)
    assert (told.layout.to_dict(), told.layout_by, told.item) == (layout, "metadata", "裙子")
    assert torch.equal(told.latent_mean_CHW, fine.latent_mean_CHW)


def test_long_captions_are_cut_and_counted(tmp_path: Path, tiny_flux: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 2)
    (tmp_path / "triptychs" / "item-0.txt").write_text("<IMAGE 1> " + "dress " * 50)
    assert embed(config(tmp_path, tiny_flux)).finish()["captions_cut"] == 1


def test_other_settings_are_refused(tmp_path: Path, tiny_flux: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 1)
    embed(config(tmp_path, tiny_flux)).finish()
    with pytest.raises(WorkError, match="max_sequence_length"):
        embed(config(tmp_path, tiny_flux, max_sequence_length=16))
    with pytest.raises(WorkError, match="no triptychs"):
        embed(config(tmp_path / "nothing", tiny_flux))


def test_one_bad_picture_stops_none_of_the_others(tmp_path: Path, tiny_flux: Path) -> None:
    folder = tmp_path / "triptychs"
    write_triptychs(folder, 3)
    whole = (folder / "item-0.png").read_bytes()
    (folder / "item-0.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (90, 48)).save(folder / "item-1.png")
    (folder / "tiny.txt").write_text("x")
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    (folder / ".part-left-over.png").write_bytes(b"")
    summary = embed(config(tmp_path, tiny_flux)).finish()
    assert (summary["embedded"], summary["rejected"]) == (1, 3)
    reasons = (tmp_path / "embeddings" / "flux" / "embed.rejects.jsonl").read_text()
    assert "does not look like three panels" in reasons
    assert '"item-0"' in reasons
    assert EmbeddingFolder(tmp_path / "embeddings" / "flux").ids == ["item-2"]


def test_removed_triptychs_are_not_trained_on(tmp_path: Path, tiny_flux: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 3)
    embed(config(tmp_path, tiny_flux)).finish()
    (tmp_path / "triptychs" / "item-1.png").unlink()
    embed(config(tmp_path, tiny_flux)).finish()
    assert EmbeddingFolder(tmp_path / "embeddings" / "flux").ids == ["item-0", "item-2"]


def test_the_empty_prompt_is_no_record(tmp_path: Path, tiny_flux: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 1)
    embed(config(tmp_path, tiny_flux)).finish()
    assert (tmp_path / "embeddings" / "flux" / f"{EMPTY}.safetensors").exists()
    assert EmbeddingFolder(tmp_path / "embeddings" / "flux").ids == ["item-0"]


@pytest.mark.parametrize("text", ["{oops", '{"item-0": 1}', "[[1], 2]", "null"])
def test_a_list_of_ids_that_is_none_is_told_and_made_anew(tmp_path: Path, tiny_flux: Path, text: str) -> None:
    write_triptychs(tmp_path / "triptychs", 1)
    embed(config(tmp_path, tiny_flux)).finish()
    folder = tmp_path / "embeddings" / "flux"
    (folder / INDEX).write_text(text)
    with pytest.raises(WorkError, match=INDEX) as caught:
        EmbeddingFolder(folder)
    assert "`triptych embed` again" in caught.value.hint
    embed(config(tmp_path, tiny_flux)).finish()
    assert EmbeddingFolder(folder).ids == ["item-0"]
    next((folder / TEXTS).iterdir()).unlink()
    with pytest.raises(WorkError, match="is missing"):
        load_record(folder / "item-0.safetensors")


def test_shards_hold_what_the_files_held(tmp_path: Path, tiny_flux: Path) -> None:
    """Packed, found again, replaced by what is computed anew, and packed again."""
    for work in (tmp_path / "loose", tmp_path / "packed"):
        write_triptychs(work / "triptychs", 5)
    loose = EmbeddingFolder(Path(embed(config(tmp_path / "loose", tiny_flux)).finish()["folder"]))
    size = 4 * sum(path.stat().st_size for path in loose.path.glob("item-0.safetensors")) / 2**30
    options = config(tmp_path / "packed", tiny_flux, shard_gib=size)
    folder = Path(embed(options).finish()["folder"])
    packed = EmbeddingFolder(folder)
    assert not list(folder.glob("*.safetensors")) and not list(folder.glob(f"{TEXTS}/*.safetensors"))
    assert len(list(folder.glob("shards/*.safetensors"))) > 1
    assert packed.ids == loose.ids and packed.about == loose.about
    for id in loose.ids:
        ours, theirs = vars(packed[id]), vars(loose[id])
        assert torch.equal(ours.pop("latent_mean_CHW"), theirs.pop("latent_mean_CHW"))
        assert torch.equal(ours.pop("latent_std_CHW"), theirs.pop("latent_std_CHW"))
        ours_text, theirs_text = ours.pop("text"), theirs.pop("text")
        assert all(torch.equal(ours_text[name], theirs_text[name]) for name in theirs_text) and ours == theirs
    assert all(torch.equal(packed.empty[name], value) for name, value in loose.empty.items())
    again = embed(options).finish()
    assert (again["kept"], again["embedded"]) == (5, 0)
    (tmp_path / "packed/triptychs/item-1.txt").write_text(
        "Another caption. <IMAGE 1> a <IMAGE 2> b <IMAGE 3> c"
    )
    without = config(tmp_path / "packed", tiny_flux)
    changed = embed(without).finish()
    assert (changed["kept"], changed["embedded"]) == (4, 1) and (folder / "item-1.safetensors").exists()
    fresh = EmbeddingFolder(folder)["item-1"]
    assert fresh.caption_sha256 != packed["item-1"].caption_sha256, "a single file wins"
    assert embed(options).finish()["kept"] == 5 and not (folder / "item-1.safetensors").exists()
    assert EmbeddingFolder(folder)["item-1"].caption_sha256 == fresh.caption_sha256, "the later shard wins"


def test_a_damaged_shard_is_made_anew(tmp_path: Path, tiny_flux: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 3)
    options = config(tmp_path, tiny_flux, shard_gib=1)
    folder = Path(embed(options).finish()["folder"])
    (shard,) = folder.glob("shards/*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(WorkError, match="no embeddings"):
        EmbeddingFolder(folder)
    assert embed(options).finish()["embedded"] == 3
    assert len(EmbeddingFolder(folder).ids) == 3


def test_packing_that_was_ended_leaves_nothing_twice(tmp_path: Path, tiny_flux: Path) -> None:
    write_triptychs(tmp_path / "triptychs", 2)
    folder = Path(embed(config(tmp_path, tiny_flux)).finish()["folder"])
    kept = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    embed(config(tmp_path, tiny_flux, shard_gib=1)).finish()
    for path, data in kept.items():
        path.write_bytes(data)  # as if it had ended between the shard and the deletion
    embed(config(tmp_path, tiny_flux, shard_gib=1)).finish()
    assert len(list(folder.glob("shards/*"))) == 1 and not list(folder.glob("*.safetensors"))
