"""A captioner on this machine: any `transformers` image-text-to-text model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.captioning.questions import CUT_OFF_HINT, AnswerError, quote, usable_answer
from triptych.errors import ModelError
from triptych.pocket.known_worlds import known_by
from triptych.wording.hub import hub_unreachable

if TYPE_CHECKING:
    from PIL import Image


FORM = (
    "It must be an image-text-to-text model in safetensors that needs no code of its own: a folder, or a "
    "name of the hub."
)


def look_up(name: str) -> None:
    """Check that a folder or hub model has the files that a captioner needs, as far as its smallest file
    shows.

    Raises:
        ModelError: it lacks them, or the hub cannot be reached. This check fails at once; loading would retry
            for minutes.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"The captioner {name} cannot be loaded: it lacks config.json or a .safetensors file.", FORM
            )
        return
    if name.startswith((".", "/", "~")):
        raise ModelError(f"The captioner {name} cannot be loaded: there is no such folder.", FORM)
    try:
        from huggingface_hub import hf_hub_download

        hf_hub_download(name, "config.json")
    except Exception as error:  # the hub's client raises a dozen unrelated exception types
        raise hub_unreachable(name, error, "--vlm-model FOLDER") or ModelError(
            f"The captioner {name} cannot be loaded: {_first_line(error)}.", FORM
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return quote(lines[0], 300).rstrip(". ")


class LocalCaptioner:
    """A `transformers` image-text-to-text model, from a folder or the hub: safetensors only; code in the
    model folder is never run.

    Answers are greedy, so the same picture and prompt give the same answer.
    """

    concurrent = False

    def __init__(self, name: str, device: str = "auto") -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from triptych.compute.devices import default_dtype, usable_device

        where = usable_device(device)
        folder = Path(name).expanduser()
        self.knows = known_by(folder)
        source = str(folder) if folder.is_dir() else name
        options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": folder.is_dir()}
        look_up(name)
        try:
            self._processor = AutoProcessor.from_pretrained(source, **options)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                source, use_safetensors=True, dtype="auto", **options
            )
        # transformers raises many exception types for an unsuitable folder or name
        except Exception as error:
            raise hub_unreachable(name, error, "--vlm-model FOLDER", part=True) or ModelError(
                f"The captioner {name} cannot be loaded: {_first_line(error)}.",
                FORM,
            ) from error
        if where.type != "cuda" and default_dtype(where) == torch.float32:
            model = model.float()  # a CPU that emulates half precision is a hundred times slower
        self._model: Any = model.to(where).eval()
        self.identity = (
            f"local:{folder.name}:{_fingerprint(folder)}"
            if folder.is_dir()
            else f"local:{name}:{model.config._commit_hash}"
        )

    def ask(self, image: Image.Image, prompt: str, max_new_tokens: int) -> str:
        import torch

        inputs = self._inputs(image.convert("RGB"), prompt).to(self._model.device, self._model.dtype)
        asked = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        text_config = self._model.config.get_text_config()
        room = (getattr(text_config, "max_position_embeddings", None) or asked + max_new_tokens) - asked
        if room <= 0:
            raise ModelError(
                f"The captioner reads {asked + room} tokens, picture and prompt have {asked}.",
                "Use another captioner.",
            )
        with torch.inference_mode():
            output_BL = self._model.generate(
                **inputs, max_new_tokens=min(room, max_new_tokens), do_sample=False, num_beams=1
            )
        if not self._model.config.is_encoder_decoder:
            output_BL = output_BL[:, asked:]
        ends = self._model.generation_config.eos_token_id
        if output_BL[0, -1].item() not in (ends if isinstance(ends, list) else [ends]):
            raise AnswerError("the answer was cut off by the length limit", CUT_OFF_HINT)
        return usable_answer(self._processor.batch_decode(output_BL, skip_special_tokens=True)[0])

    def _inputs(self, image: Image.Image, prompt: str) -> Any:
        if not getattr(self._processor, "chat_template", None):
            return self._processor(images=image, text=prompt, return_tensors="pt")
        chat = [
            {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]}
        ]
        options: dict[str, Any] = {
            "tokenize": True,
            "return_dict": True,
            "add_generation_prompt": True,
            "return_tensors": "pt",
        }
        return self._processor.apply_chat_template(chat, **options)

    def check(self) -> None:
        pass  # it is already loaded

    def close(self) -> None:
        pass


def _fingerprint(folder: Path) -> str:
    """Tells two versions of a model folder apart, by names, sizes,
    and the first and last MiB of every file.
    """
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".jinja")):
        size = path.stat().st_size
        total.update(f"{path.name} {size} ".encode())
        with open(path, "rb") as file:
            total.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            total.update(file.read())
    return total.hexdigest()[:16]
