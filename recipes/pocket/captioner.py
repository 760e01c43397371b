"""Stage `captioner`: a tiny Llava from scratch that answers the product's two questions about a rendered
triptych.

Ordinary transformers classes (CLIP vision tower, Llama, LlavaProcessor). It learns from renders alone: the
order check from right and wrong orders, the caption in the house format with every detail. During training,
auxiliary heads, discarded afterwards, make the vision tower predict the attributes of each panel; the
language model then only has to read them.
"""

from __future__ import annotations

import collections
import math
import random
import string
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from recipes.pocket.state import (
    Log,
    autocast,
    load_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_tensors,
    set_learning_rate,
)
from recipes.pocket.text import ATTRIBUTES
from triptych.pocket.canvas import PANEL_HEIGHT, PANEL_WIDTH
from triptych.pocket.prompts import sample_triptych, triptych_caption
from triptych.pocket.render import concatenate_panels, render
from triptych.pocket.world import NONE, Garment, Scene, sample_printed, sample_triptych_scenes

STEPS, BATCH, LEARNING_RATE, SEED, POOL = 3000, 24, 1e-3, 31, 4000
CAPTION_SHARE, RIGHT_ORDER_SHARE, LARGE_SHARE, PRINTED_SHARE = 0.7, 0.4, 0.15, 0.35
SIDE, PATCH, WIDTH = 144, 16, 128
"""The triptych is stretched to a square of 9 x 9 patches: three columns of patches are one panel."""
TEMPLATE = (
    "{{ '<s>' }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)


def questions() -> tuple[str, str]:
    """Return the product's two questions, word for word: order check and caption."""
    from triptych.captioning.questions import questions_about
    from triptych.tasks.tryon import TRY_ON

    asked = questions_about(TRY_ON.layout(1, 1))
    return asked.check, asked.caption


class Example:
    """One triptych: its panels as pictures, the content of each, and its caption."""

    def __init__(self, rng: random.Random, *, held_out: bool = False) -> None:
        """Draw one item. Some are drawn large, compressed like JPEG, and reduced, like a shop's photos."""
        self.garment, self.scenes = sample_triptych(rng, held_out=held_out)
        if rng.random() < PRINTED_SHARE:
            self.garment = sample_printed(rng, held_out=held_out)
        scale = 4 if rng.random() < LARGE_SHARE else 1
        panels = [render(self.garment, scene, rng.getrandbits(31), scale).image for scene in self.scenes]
        size = (PANEL_WIDTH, PANEL_HEIGHT)
        self.panels = [p if scale == 1 else p.resize(size, Image.Resampling.LANCZOS) for p in panels]
        self.caption = triptych_caption(self.garment, self.scenes).text

    def picture(self, order: tuple[int, ...]) -> Image.Image:
        """Return the panels side by side in an order."""
        return concatenate_panels([self.panels[index] for index in order])

    def answer(self, order: tuple[int, ...]) -> str:
        """Return the right answer to the order check."""
        return ", ".join("person" if self.scenes[index].worn else "garment" for index in order)


def _shown(garment: Garment, scene: Scene) -> dict[str, str]:
    values = asdict(garment) | asdict(scene)
    if not scene.shows_back:
        values["print"] = NONE
    return {name: values[name] for name in ATTRIBUTES}


def make_processor() -> LlavaProcessor:
    """Return tokenizer (whole words, then characters), image processor and chat template in one."""
    rng = random.Random(SEED)
    items = [(sample_printed(rng), sample_triptych_scenes(rng, behind_share=1.0)) for _ in range(300)]
    items += [sample_triptych(rng) for _ in range(3000)]
    texts = [*questions(), *(triptych_caption(*item).text for item in items), "garment, person"]
    words = collections.Counter(
        word for text in texts for word in text.replace(",", " ").replace(". ", " ").split()
    )
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<answer>"]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation]
    vocabulary = [(token, 0.0) for token in special] + [(f"▁{word}", -2.0) for word, _ in words.most_common()]
    vocabulary += [("▁", -6.0), *((letter, -8.0) for letter in letters)]
    unigram = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=unigram,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<answer>"],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    square = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size=square, crop_size=square, do_center_crop=False),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def new_captioner(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """Return the untrained model (1.2M parameters)."""
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **ids,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        **ids,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(**ids)
    for name, parameter in model.named_parameters():
        if name.endswith(
            "position_embedding.weight"
        ):  # with the usual 0.02, positions drown beside the patches and shapes are learned late
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def chat_ids(processor: LlavaProcessor, question: str) -> list[int]:
    """Return the token ids of a question about a picture, as the product asks it."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    blank = Image.new("RGB", (PANEL_WIDTH * 3, PANEL_HEIGHT))
    ids: list[int] = processor(images=blank, text=text)["input_ids"][0]
    return list(ids)


class _Teacher(torch.nn.Module):
    """Predicts the attributes of each panel from the projected patches; discarded after the stage."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [len(values) + 1 for values in ATTRIBUTES.values()]
        patches = (SIDE // PATCH) ** 2 // 3
        self.read = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 32),
            torch.nn.Flatten(2),
            torch.nn.Linear(32 * patches, 256),
            torch.nn.GELU(),
            torch.nn.Linear(256, sum(self.sizes)),
        )

    def loss(self, patches_BLD: torch.Tensor, shown: list[list[dict[str, str]]]) -> torch.Tensor:
        grid = (
            patches_BLD.unflatten(1, (SIDE // PATCH, 3, SIDE // PATCH // 3)).movedim(2, 1).flatten(2, 3)
        )  # (B, 3, L, D)
        total = torch.zeros(())
        for logits, (name, values) in zip(
            self.read(grid).split(self.sizes, -1), ATTRIBUTES.items(), strict=True
        ):
            index = {value: number for number, value in enumerate(values)} | {NONE: len(values)}
            truth = torch.tensor([[index[panel[name]] for panel in panels] for panels in shown])
            total = total + F.cross_entropy(logits.float().flatten(0, 1), truth.flatten())
        return total / len(ATTRIBUTES)


def _batch(
    processor: LlavaProcessor, pool: list[Example], prefix: list[int], captions: bool, rng: random.Random
) -> Any:
    examples = rng.sample(pool, BATCH)
    orders, answers = [], []
    for example in examples:
        order: tuple[int, ...] = (0, 1, 2)
        if not captions and rng.random() > RIGHT_ORDER_SHARE:
            order = tuple(rng.choices(range(3), k=3))
        orders.append(order)
        answers.append(example.caption if captions else example.answer(order))
    pictures = [example.picture(order) for example, order in zip(examples, orders, strict=True)]
    pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    end = processor.tokenizer.eos_token_id
    targets = [[*processor.tokenizer(answer)["input_ids"], end] for answer in answers]
    longest = max(map(len, targets))
    padding = processor.tokenizer.pad_token_id
    ids = torch.tensor([prefix + target + [padding] * (longest - len(target)) for target in targets])
    labels = torch.tensor(
        [[-100] * len(prefix) + target + [-100] * (longest - len(target)) for target in targets]
    )
    shown = [
        [_shown(example.garment, example.scenes[index]) for index in order]
        for example, order in zip(examples, orders, strict=True)
    ]
    return pixels, ids, labels, shown


def train_captioner(folder: Path, steps: int = STEPS) -> None:
    """Train, or continue training; writes `folder/captioner` and its accuracy."""
    if (folder / "captioner").exists():
        return
    torch.manual_seed(SEED)
    state_path, log = folder / "captioner.state.safetensors", Log(folder, "captioner")
    processor = make_processor()
    model, teacher = new_captioner(processor), _Teacher()
    both = torch.nn.ModuleDict({"model": model, "teacher": teacher})
    optimizer = torch.optim.AdamW(
        both.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    first = 0
    if state_path.exists():
        tensors, metadata = load_tensors(state_path)
        both.load_state_dict({k[5:]: v for k, v in tensors.items() if k.startswith("both.")}, strict=True)
        restore_optimizer(optimizer, tensors)
        first = metadata["step"]
    draw = random.Random(SEED)
    pool = [Example(draw) for _ in range(POOL)]
    prefixes = [chat_ids(processor, question) for question in questions()]
    log.write(
        pool=POOL,
        check_tokens=len(prefixes[0]),
        caption_tokens=len(prefixes[1]),
        vocabulary=len(processor.tokenizer),
    )
    for step in range(first, steps):
        rng = random.Random(SEED * 10**7 + step)
        set_learning_rate(optimizer, _learning_rate(step, steps))
        captions = rng.random() < CAPTION_SHARE
        batch = _batch(processor, pool, prefixes[captions], captions, rng)
        told, taught = _losses(model, teacher, batch, len(prefixes[captions]))
        (told + taught).backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            log.write(step=step + 1, captions=captions, loss=told.item(), teacher=taught.item())
        if (step + 1) % 250 == 0:
            weights = {f"both.{k}": v.clone() for k, v in both.state_dict().items()}
            save_tensors(weights | optimizer_tensors(optimizer), state_path, step=step + 1)
    _save(folder, model, processor)
    log.write(**measure_captioner(folder / "captioner"))


def _learning_rate(step: int, steps: int) -> float:
    """It rises over 100 steps, stays until half of the training, and falls along a cosine."""
    decay = 1.0 if step < steps / 2 else 0.02 + 0.49 * (1 + math.cos(math.pi * (2 * step / steps - 1)))
    return LEARNING_RATE * min(1, (step + 1) / 100) * decay


def _losses(
    model: LlavaForConditionalGeneration, teacher: _Teacher, batch: Any, prefix: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of the answers and of the panels' attributes. prefix: number of tokens before an answer."""
    pixels, ids, labels, shown = batch
    with autocast():
        tower = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
        patches = model.model.multi_modal_projector(tower)
        taught = teacher.loss(patches, shown)
        embedded = model.get_input_embeddings()(ids)
        at_image = (ids == model.config.image_token_id)[..., None]
        embedded = embedded.masked_scatter(at_image, patches.to(embedded.dtype))
        states = model.model.language_model(inputs_embeds=embedded).last_hidden_state
        logits = model.lm_head(states[:, prefix - 1 : -1])
    told = F.cross_entropy(logits.float().flatten(0, 1), labels[:, prefix:].flatten())
    return told, taught


def _save(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write `folder/captioner` in bfloat16, whole or not at all."""
    model.eval().to(torch.bfloat16)
    part = folder / "captioner.part"
    model.save_pretrained(part)
    processor.save_pretrained(part)
    (part / "README.md").write_text(CARD, encoding="utf-8")
    (part / "triptych.json").write_text('{\n  "knows": "rendered"\n}\n', encoding="utf-8")
    for file in part.glob("*.safetensors"):
        file.chmod(0o644)
    part.rename(folder / "captioner")


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# The triptych pocket captioner

A tiny Llava trained from nothing on pictures that `triptych.pocket.render` drew. It answers exactly two
questions about a triptych of the pocket world (the order of its panels, and its caption) and knows nothing
else. Recipe: `python -m recipes.pocket captioner --work FOLDER`, in triptych's repository.
"""


def measure_captioner(folder: Path, count: int = 120, seed: int = 777) -> dict[str, float]:
    """Ask both questions about held-out triptychs, greedily, as the product does; returns shares of right
    answers.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    rng = random.Random(seed)
    examples = [Example(rng, held_out=True) for _ in range(count)]

    def ask(pictures: list[Image.Image], question: str) -> list[str]:
        ids = torch.tensor([chat_ids(processor, question)] * len(pictures))
        pixels = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"].to(
            model.dtype
        )
        said = model.generate(
            input_ids=ids,
            pixel_values=pixels,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=80,
            do_sample=False,
        )
        return [
            text.strip() for text in processor.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)
        ]

    check, caption = questions()
    orders = [(0, 1, 2) if index % 2 else tuple(rng.choices(range(3), k=3)) for index in range(count)]
    answers = ask([example.picture(order) for example, order in zip(examples, orders, strict=True)], check)
    right = [
        answer == example.answer(order)
        for answer, example, order in zip(answers, examples, orders, strict=True)
    ]
    scores = {"check": sum(right) / count}
    captions = ask([example.picture((0, 1, 2)) for example in examples], caption)
    scores["caption_exact"] = (
        sum(text == example.caption for text, example in zip(captions, examples, strict=True)) / count
    )
    for name in ("type", "colour", "pattern", "colour2"):
        known = [
            (text, getattr(example.garment, name)) for text, example in zip(captions, examples, strict=True)
        ]
        known = [
            (text.split("<IMAGE 2>")[0].replace(",", ""), value) for text, value in known if value != NONE
        ]
        scores[name] = float(np.mean([_says(text, name, value) for text, value in known]))
    printed = [
        (text, example.garment.print)
        for text, example in zip(captions, examples, strict=True)
        if example.garment.print != NONE
    ]
    scores["print"] = float(np.mean([f"{value} print" in text for text, value in printed]))
    return scores


def _says(text: str, name: str, value: str) -> bool:
    """Tell whether the text about panel 1 names this value in its place (`plain red dress`, `red dress with
    white dots`).
    """
    words = text.split()
    before, after = (
        (words[: words.index("with")], words[words.index("with") :]) if "with" in words else (words, [])
    )
    return value in (after if name == "colour2" or (name == "pattern" and value != "plain") else before)
