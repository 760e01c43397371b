"""One step of diffusers' examples/dreambooth/train_dreambooth_lora_flux2_klein.py, for `train.py` and
`gpu.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor

from flux_like import as_diffusers_has_it
from train import ScriptStep, lora_of
from triptych.backbones.flux2.autoencoder import unpatchify
from triptych.data.embeddings import EmbeddingFolder
from triptych.sampling.opened import OpenedModel


class KleinScriptStep(ScriptStep):
    """One iteration of the script's loop with --cache_latents: the autoencoder's means are normalised and
    noised at every step; the model sees the picture and its words, and no references."""

    def __init__(self, models: OpenedModel, work: Path) -> None:
        self.cached, self.parameters, self.backbone = True, lora_of(models), models.backbone
        self.transformer = as_diffusers_has_it(models.transformer)
        records = EmbeddingFolder(work / "embeddings" / models.backbone.name)
        record = records[records.ids[0]]
        kind = {"device": self.backbone.device, "dtype": self.backbone.dtype}
        autoencoder = models.autoencoder
        self.mean, self.std = autoencoder.mean.to(**kind), autoencoder.std.to(**kind)  # type: ignore[attr-defined]
        self.cells = unpatchify(record.latent_mean_CHW[None].to(**kind) * self.std + self.mean)
        self.text = self.backbone.to_device({name: value[None] for name, value in record.text.items()})
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(models.backbone.scheduler_config)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4)
        self.latents: Tensor | None = None
        """Normalised latents to take instead, so that both start from the same bits."""

    def loss(self, noise: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        clean = self.latents
        if clean is None:
            clean = (Flux2KleinPipeline._patchify_latents(self.cells) - self.mean) / self.std
        ids = Flux2KleinPipeline._prepare_latent_ids(clean).to(clean.device)
        noise = torch.randn_like(clean) if noise is None else noise
        if t is None:
            u = compute_density_for_timestep_sampling("none", len(clean), 0.0, 1.0, 1.29)
            levels = self.scheduler.timesteps.to(clean.device)
            timesteps = self.scheduler.timesteps[(u * self.scheduler.config.num_train_timesteps).long()]
            timesteps = timesteps.to(clean.device)
            places = [(levels == one).nonzero().item() for one in timesteps]  # the script waits here as well
            sigmas = self.scheduler.sigmas.to(clean)[places].flatten().view(-1, 1, 1, 1)
            t = timesteps / 1000
        else:
            sigmas = t.to(clean).view(-1, 1, 1, 1)
        noisy = (1.0 - sigmas) * clean + sigmas * noise
        states = self.text["prompt_embeds"]
        words = Flux2KleinPipeline._prepare_text_ids(states).to(clean.device)
        with self.backbone.autocast():  # as accelerate has it with --mixed_precision bf16
            predicted = self.transformer(
                hidden_states=Flux2KleinPipeline._pack_latents(noisy),
                timestep=t,
                guidance=None,
                encoder_hidden_states=states,
                txt_ids=words,
                img_ids=ids,
                return_dict=False,
            )[0]
        predicted = Flux2KleinPipeline._unpack_latents_with_ids(predicted, ids)
        weighting = compute_loss_weighting_for_sd3("none", sigmas)
        error = (predicted.float() - (noise - clean).float()) ** 2
        return (weighting.float() * error).reshape(len(clean), -1).mean(1).mean()
