"""Stages `tokenizers` and `text`: a T5 and a CLIP text encoder that understand the captions before any
training on pictures.

FLUX gives text tokens no position, so the T5 states themselves must tell which panel a word belongs to. Both
encoders are therefore trained first, on captions alone: learned (panel, attribute) queries must predict the
attributes of each panel from the T5 states, and linear heads from the CLIP pooled vector. Then the encoders
are frozen.
"""

from __future__ import annotations

import collections
import math
import random
import string
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from recipes.pocket.state import Log, autocast, set_learning_rate
from triptych.pocket.prompts import (
    BOARD_SUMMARIES,
    Caption,
    board_caption,
    panel_caption,
    sample_board,
    sample_triptych,
    triptych_caption,
)
from triptych.pocket.world import (
    BACKGROUNDS,
    COLOURS,
    FACINGS,
    HAIRS,
    HAIRSTYLES,
    PATTERNS,
    PRINTS,
    TYPES,
    VIEWS,
    sample_garment,
    sample_printed,
    sample_scene,
)

STEPS, BATCH, LEARNING_RATE, SEED, WIDTH = 600, 96, 2e-3, 21, 128
SINGLE_LENGTH, TRIPTYCH_LENGTH = 24, 56
"""T5 tokens of the prompt for a single panel and for a triptych (`max_sequence_length`)."""
PRINTED = 0.2
"""Share of the captions whose garment is certain to have a back print."""
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "view": VIEWS,
    "type": TYPES,
    "colour": tuple(COLOURS),
    "pattern": PATTERNS,
    "colour2": tuple(COLOURS),
    "print": PRINTS,
    "facing": FACINGS,
    "hair": tuple(HAIRS),
    "hairstyle": HAIRSTYLES,
    "background": tuple(BACKGROUNDS),
}
KINDS = ("single", *BOARD_SUMMARIES, "one item")


def sample_caption(rng: random.Random) -> Caption:
    """Draw a caption of any kind; the only stage that reads the triptych summary."""
    chance = rng.random()
    if chance < 0.3:
        garment = sample_printed(rng) if rng.random() < PRINTED else sample_garment(rng)
        scene = sample_scene(rng, rng.choice(VIEWS))
        return panel_caption(garment, scene, rng, named=rng.random() < 0.85, varied=True)
    if chance < 0.8:
        kind = rng.choice(tuple(BOARD_SUMMARIES))
        board = sample_board(rng, kind, print_share=PRINTED)
        return board_caption(board, kind, rng, silent=0.35, one_named=0.4, varied=True)
    garment, scenes = sample_triptych(rng)
    if rng.random() < PRINTED:
        garment = sample_printed(rng)
    # half of them in the house wording, like captions on disk
    named, varied, details = rng.random() < 0.5, rng.random() < 0.5, rng.choice((0.6, 1.0))
    return triptych_caption(garment, scenes, rng, named=named, details=details, varied=varied)


def make_tokenizers(folder: Path) -> None:
    """Write `folder/tokenizer` (CLIP, byte-level BPE) and `folder/tokenizer_2` (T5, whole words plus
    characters).
    """
    rng = random.Random(3)
    corpus = [sample_caption(rng).text for _ in range(7500)]
    counts = collections.Counter(word for text in corpus for word in text.replace(",", " , ").split())
    letters = [*string.ascii_letters, *string.digits, *string.punctuation]
    letters += [chr(code) for code in range(0xA1, 0x180) if chr(code).isalpha()]
    words = [word for word, _ in counts.most_common()]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(f"▁{word}", -2.0) for word in words if word != ","]
    vocabulary += [("▁", -6.0), *((letter, -8.0) for letter in letters)]
    t5 = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    t5.model_max_length = 512
    t5.save_pretrained(folder / "tokenizer_2")
    clip = CLIPTokenizer().train_new_from_iterator(corpus, vocab_size=1200)
    clip.model_max_length = 77
    clip.save_pretrained(folder / "tokenizer")


class TextEncoders(torch.nn.Module):
    """Both tokenizers and both text encoders."""

    def __init__(self, folder: Path) -> None:
        """Build untrained encoders around the tokenizers of a build folder."""
        super().__init__()
        self.clip_tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.t5_tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
        size = len(self.t5_tokenizer)
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=size + (-size) % 8,
                d_model=WIDTH,
                d_kv=32,
                num_heads=4,
                d_ff=256,
                num_layers=2,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                pad_token_id=0,
                eos_token_id=1,
            )
        )
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.clip_tokenizer),
                hidden_size=WIDTH,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                projection_dim=WIDTH,
                max_position_embeddings=77,
                pad_token_id=self.clip_tokenizer.pad_token_id,
                bos_token_id=self.clip_tokenizer.bos_token_id,
                eos_token_id=self.clip_tokenizer.eos_token_id,
            )
        )
        for module in self.clip.modules():
            if isinstance(module, torch.nn.Embedding):
                torch.nn.init.normal_(module.weight, std=0.3)
        torch.nn.init.normal_(self.t5.shared.weight, std=1.0)

    @classmethod
    def trained(cls, folder: Path) -> TextEncoders:
        """Load the frozen encoders of a build folder."""
        encoders = cls(folder)
        encoders.t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2")
        encoders.clip = CLIPTextModel.from_pretrained(folder / "text_encoder")
        return encoders.eval().requires_grad_(False)

    def forward(self, prompts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return T5 states (B, length, 128) and CLIP pooled vectors (B, 128)."""
        options = {"truncation": True, "return_tensors": "pt"}
        clip = self.clip_tokenizer(prompts, padding="longest", max_length=77, **options).input_ids
        t5 = self.t5_tokenizer(prompts, padding="max_length", max_length=length, **options).input_ids
        return self.t5(input_ids=t5)[0], self.clip(input_ids=clip).pooler_output


class _Reader(torch.nn.Module):
    """Predicts the attributes that each of three panels states; discarded after the stage."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [len(values) + 1 for values in ATTRIBUTES.values()]
        self.queries = torch.nn.Parameter(torch.randn(3 * len(ATTRIBUTES), WIDTH) * 0.5)
        self.attention = torch.nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.from_t5 = torch.nn.ModuleList([torch.nn.Linear(WIDTH, size) for size in self.sizes])
        self.from_clip = torch.nn.ModuleList([torch.nn.Linear(WIDTH, sum(self.sizes)) for _ in range(3)])
        self.kind_from_t5 = torch.nn.Linear(WIDTH, len(KINDS))
        self.kind_from_clip = torch.nn.Linear(WIDTH, len(KINDS))

    def forward(
        self, states: torch.Tensor, pooled: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return logits per attribute (B, 3, values + 1), first from T5, then from CLIP; kinds come last."""
        read = self.attention(self.queries.expand(len(states), -1, -1), states, states, need_weights=False)[0]
        read = self.norm(read).unflatten(1, (3, len(ATTRIBUTES)))
        t5 = [head(read[:, :, index]) for index, head in enumerate(self.from_t5)]
        clip = torch.stack([head(pooled) for head in self.from_clip], 1).split(self.sizes, -1)
        return [*t5, self.kind_from_t5(states.mean(1))], [*clip, self.kind_from_clip(pooled)]


def _labels(captions: list[Caption]) -> list[torch.Tensor]:
    labels = []
    for name, values in ATTRIBUTES.items():
        rows = [
            [said.get(name, "") for said in caption.said] + [""] * (3 - len(caption.said))
            for caption in captions
        ]
        index = {value: number for number, value in enumerate(values)}
        labels.append(torch.tensor([[index.get(value, len(values)) for value in row] for row in rows]))
    return [*labels, torch.tensor([KINDS.index(caption.kind) for caption in captions])]


def train_text(folder: Path, steps: int = STEPS) -> None:
    """Train both encoders on captions alone; writes `folder/text_encoder`, `folder/text_encoder_2`, and
    missing tokenizers.
    """
    if (folder / "text_encoder_2").exists():
        return
    if not (folder / "tokenizer_2").exists():
        make_tokenizers(folder)
    torch.manual_seed(SEED)
    rng, log = random.Random(SEED), Log(folder, "text")
    encoders, reader = TextEncoders(folder), _Reader()
    parameters = [*encoders.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        part = step / steps
        decay = 1.0 if part < 0.5 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (part - 0.5) / 0.5))
        set_learning_rate(optimizer, LEARNING_RATE * min(1, (step + 1) / 60) * decay)
        captions = [sample_caption(rng) for _ in range(BATCH)]
        labels = _labels(captions)
        with autocast():
            states, pooled = encoders([caption.text for caption in captions], TRIPTYCH_LENGTH)
        answers = reader(states.float(), pooled.float())
        pairs = [pair for logits in answers for pair in zip(logits, labels, strict=True)]
        loss = torch.stack(
            [F.cross_entropy(logits.flatten(0, -2), label.flatten()) for logits, label in pairs]
        ).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            accuracy = [
                {name: _accuracy(a, y) for name, a, y in zip(ATTRIBUTES, of[:-1], labels[:-1], strict=True)}
                for of in answers
            ]
            log.write(step=step + 1, loss=loss.item(), t5=accuracy[0], clip=accuracy[1])
    encoders.t5.save_pretrained(folder / "text_encoder_2.part")
    encoders.clip.save_pretrained(folder / "text_encoder.part")
    (folder / "text_encoder.part").rename(folder / "text_encoder")
    (folder / "text_encoder_2.part").rename(folder / "text_encoder_2")


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    said = labels < logits.shape[-1] - 1
    return round((logits.argmax(-1) == labels)[said].float().mean().item(), 3)
