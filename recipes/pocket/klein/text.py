"""Stages `tokenizer` and `text`: a tiny Qwen3 that understands the captions before any training on pictures.

The pipeline hands the transformer hidden states 9, 18 and 27 side by side, pads included and unmasked. As in
the first pocket the encoder is trained on captions alone, then frozen: learned queries must find, in exactly
these states, what each panel states, and which reference gives the garment and the person.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AddedToken, Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from recipes.pocket.klein.captions import edit_caption
from recipes.pocket.klein.sets import LAYOUTS, PictureSet, draw_edit, sample_look, sample_quad
from recipes.pocket.state import Log, set_learning_rate
from recipes.pocket.text import ATTRIBUTES as PANEL_ATTRIBUTES
from recipes.pocket.text import KINDS as CAPTION_KINDS
from recipes.pocket.text import sample_caption
from triptych.backbones.families import klein_chat
from triptych.backbones.flux2.text import LAYERS
from triptych.pocket.prompts import Caption

STEPS, BATCH, LEARNING_RATE, SEED, HIDDEN, DEPTH = 450, 48, 2e-3, 31, 48, 28
WIDTH = HIDDEN * len(LAYERS)
LENGTH = 64
"""Tokens of every prompt, template and pads included (`max_sequence_length`)."""
VOCABULARY, SLOTS = 1200, 4
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
MARKERS = ("<Brand>", *(f"<IMAGE {number}>" for number in range(1, 5)))
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{{- '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>' }}"
    "{%- endif %}{%- endif %}"
)
"""Qwen's chat format with fewer line breaks."""
SOURCES = ("1", "2", "3", "all")
ATTRIBUTES = PANEL_ATTRIBUTES | {"garment from": SOURCES, "person from": SOURCES[:3]}
KINDS = (*CAPTION_KINDS, "scene", "dress", "look")
EDITS = 0.4
"""Share of the captions that ask for an edit."""


def sample_any_caption(rng: random.Random, sets: dict[str, list[PictureSet]]) -> Caption:
    """Draw a caption of a picture, a board, a triptych or an edit."""
    if rng.random() >= EDITS:
        return sample_caption(rng)
    edit = draw_edit(rng.choice(list(LAYOUTS)), sets, rng)
    places = (edit.target, *edit.references)
    target, *references = (sets[kind][number].panels[index] for kind, number, index in places)
    return edit_caption(edit.kind, target, references, edit.garment_from, edit.person_from, rng)


def caption_sets(rng: random.Random) -> dict[str, list[PictureSet]]:
    """Draw the sets whose edits the captions are about; nothing is rendered."""
    return {
        "quad": [sample_quad(rng) for _ in range(2000)],
        "look": [sample_look(rng) for _ in range(1000)],
    }


def make_tokenizer(folder: Path, texts: Sequence[str] = ()) -> None:
    """Write `folder/tokenizer`: byte-level BPE with Qwen's special tokens, learned from the captions; texts:
    other captions than the shipped model's.
    """
    if not texts:
        rng = random.Random(3)
        sets = caption_sets(rng)
        texts = [sample_any_caption(rng, sets).text for _ in range(7500)]
    corpus = [*texts, *["user\n", "assistant\n", "\n\n"] * 50]
    plain = Qwen2Tokenizer().train_new_from_iterator(
        corpus, vocab_size=VOCABULARY - len(SPECIAL) - len(MARKERS)
    )
    model = json.loads(plain.backend_tokenizer.to_str())["model"]
    vocabulary = {token: index for index, token in enumerate(sorted(model["vocab"], key=model["vocab"].get))}
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
    )
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                AddedToken(token, special=True, normalized=False) for token in SPECIAL
            ]
        }
    )
    tokenizer.add_tokens([AddedToken(marker, lstrip=True, normalized=False) for marker in MARKERS])
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")


class TextEncoder(torch.nn.Module):
    """The tokenizer and the language model; gives what `Flux2KleinPipeline.encode_prompt` gives."""

    def __init__(self, folder: Path, length: int = LENGTH) -> None:
        """Build an untrained model around the tokenizer of a build folder; `length`: tokens of a prompt."""
        super().__init__()
        self.length = length
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
        size = len(self.tokenizer)
        config = Qwen3Config(
            vocab_size=size + (-size) % 8,
            hidden_size=HIDDEN,
            intermediate_size=128,
            num_hidden_layers=DEPTH,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=self.tokenizer.eos_token_id,
        )
        self.model = Qwen3ForCausalLM(config)
        torch.nn.init.normal_(self.model.model.embed_tokens.weight, std=0.5)
        for name, parameter in self.model.named_parameters():
            if name.endswith(
                ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
            ):
                torch.nn.init.xavier_uniform_(parameter)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                torch.nn.init.normal_(parameter, std=0.03)

    @classmethod
    def trained(cls, folder: Path, length: int = LENGTH) -> TextEncoder:
        """Load the frozen encoder of a build folder or of a pipeline."""
        encoder = cls(folder, length)
        encoder.model = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        return encoder.eval().requires_grad_(False)

    def tokens(self, prompts: Sequence[str], length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and attention mask (B, length), in the chat template."""
        before, after = klein_chat(self.tokenizer, "\0").split("\0")  # a template takes longer than a model
        texts = [before + prompt + after for prompt in prompts]
        got = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=length or self.length,
            return_tensors="pt",
        )
        return got.input_ids.to(self.model.device), got.attention_mask.to(self.model.device)

    def forward(self, prompts: Sequence[str], length: int | None = None) -> torch.Tensor:
        """Return the prompt's states (B, length, 144)."""
        ids, mask = self.tokens(prompts, length)
        states = self.model.model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        return torch.cat([states[layer] for layer in LAYERS], -1)


class Reader(torch.nn.Module):
    """Predicts the attributes that each of four panels states; discarded after the stage."""

    def __init__(self, attributes: dict[str, tuple[str, ...]]) -> None:
        """Build it for these attributes and their values."""
        super().__init__()
        self.attributes = attributes
        self.queries = torch.nn.Parameter(torch.randn(SLOTS * len(attributes), WIDTH) * 0.5)
        self.attention = torch.nn.MultiheadAttention(WIDTH, 6, batch_first=True)
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.heads = torch.nn.ModuleList(
            [torch.nn.Linear(WIDTH, len(values) + 1) for values in attributes.values()]
        )
        self.kind = torch.nn.Linear(WIDTH, len(KINDS))

    def forward(self, states: torch.Tensor) -> list[torch.Tensor]:
        """Return logits per attribute (B, 4, values + 1), and of the kinds last."""
        read = self.attention(self.queries.expand(len(states), -1, -1), states, states, need_weights=False)[0]
        read = self.norm(read).unflatten(1, (SLOTS, len(self.attributes)))
        answers = [head(read[:, :, index]) for index, head in enumerate(self.heads)]
        return [*answers, self.kind(states.mean(1))]

    def loss(
        self, states: torch.Tensor, captions: list[Caption], tell: bool
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the sum of the cross-entropies and, if it is to `tell`, the right shares."""
        answers, labels = self(states), labels_of(captions, self.attributes)
        labels = [label.to(states.device) for label in labels]
        losses = [
            F.cross_entropy(a.flatten(0, -2), y.flatten()) for a, y in zip(answers, labels, strict=True)
        ]
        right = zip(self.attributes, answers[:-1], labels[:-1], strict=True) if tell else ()
        return torch.stack(losses).sum(), {name: _accuracy(a, y) for name, a, y in right}


def labels_of(captions: list[Caption], attributes: dict[str, tuple[str, ...]]) -> list[torch.Tensor]:
    """Return what each panel states, (B, 4) by attribute (its number of values: nothing); kinds last."""
    labels = []
    for name, values in attributes.items():
        number = {value: index for index, value in enumerate(values)}
        rows = [
            [number.get(said.get(name, ""), len(values)) for said in caption.said]
            + [len(values)] * (SLOTS - len(caption.said))
            for caption in captions
        ]
        labels.append(torch.tensor(rows))
    return [*labels, torch.tensor([KINDS.index(caption.kind) for caption in captions])]


def train_text(folder: Path, steps: int = STEPS) -> None:
    """Train the encoder on captions alone; writes `folder/text_encoder`, and the tokenizer if missing."""
    if (folder / "text_encoder").exists():
        return
    if not (folder / "tokenizer").exists():
        make_tokenizer(folder)
    torch.manual_seed(SEED)
    rng, log = random.Random(SEED), Log(folder, "text")
    encoder, reader, sets = TextEncoder(folder), Reader(ATTRIBUTES), caption_sets(rng)
    parameters = [*encoder.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    waiting: list[list[Caption]] = []
    for step in range(steps):
        part = step / steps
        decay = 1.0 if part < 0.5 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (part - 0.5) / 0.5))
        set_learning_rate(optimizer, LEARNING_RATE * min(1, (step + 1) / 60) * decay)
        if not waiting:
            waiting = _batches_by_length(rng, sets)
        captions = waiting.pop()
        longest = max(len(caption.text.split()) for caption in captions)
        length = LENGTH if step % 4 == 0 else min(LENGTH, (longest * 5 // 4 + 18) // 8 * 8)
        tell = (step + 1) % 25 == 0
        loss, right = reader.loss(encoder([caption.text for caption in captions], length), captions, tell)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if tell:
            log.write(step=step + 1, loss=loss.item(), right=right)
    encoder.model.save_pretrained(folder / "text_encoder.part")
    (folder / "text_encoder.part").rename(folder / "text_encoder")


def _batches_by_length(rng: random.Random, sets: dict[str, list[PictureSet]]) -> list[list[Caption]]:
    """Draw four batches of captions, each of similar lengths, so that fewer pads are computed."""
    captions = [sample_any_caption(rng, sets) for _ in range(4 * BATCH)]
    captions.sort(key=lambda caption: len(caption.text))
    batches = [captions[start : start + BATCH] for start in range(0, len(captions), BATCH)]
    rng.shuffle(batches)
    return batches


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    said = labels < logits.shape[-1] - 1
    return round((logits.argmax(-1) == labels)[said].float().mean().item(), 3)
