"""Train a text-conditioned diffusion transformer on Fashion-MNIST: ``python -m training.train_text --help``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization.calibration.choice import settings
from dq_deploy.sources import Source, builtin_path, text_pipeline
from training.captions import Thirds, caption
from training.command import run, training_options
from training.data import draws, epoch_picks, load_images, load_labels, to_unit_range
from training.initial import xavier_linears
from training.loop import Recipe, Settings
from training.tokenizer import tokenizer

BUILTIN = "fashion-mnist-text"
_CAPTION_DROPOUT = 0.1
# So that a word that it does not know tells the text encoder nothing, rather than something that it never saw.
_WORD_DROPOUT = 0.03
_LATENTS = "latents.safetensors"
_UNKNOWN, _WORDS = 2, 3


@click.command()
@training_options(steps=3600, batch_size=32, ema_decay=0.998)
@click.option("--vae", type=click.Path(path_type=Path), default=None,
              help="Folder with the autoencoder in vae, as train_vae writes it.  [default: the built-in's]")  # fmt: skip
def main(vae: Path | None, output: Path, **options: Any) -> None:
    """Train a PixArtTransformer2DModel and a T5EncoderModel together on Fashion-MNIST, and write a PixArtAlphaPipeline folder (EMA, fp16).

    Captions are made from the labels and from what is measured of each picture; a tenth of them is replaced by the empty one, which
    classifier-free guidance needs. Latents of all pictures are computed once and kept beside the state.
    """
    load = functools.partial(_load, vae=vae, output=output)
    save = functools.partial(_save, vae=vae, output=output)
    recipe = Recipe("PixArtTransformer2DModel", TextDenoiser, save, load, BUILTIN, "transformer", loss=loss, weights=_weights)
    run(recipe, output=output, **options)


class TextDenoiser(torch.nn.Module):
    """The transformer and the text encoder that it listens to, trained as one."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.transformer = transformer(config)
        self.text_encoder = text_encoder(config["caption_channels"])

    @classmethod
    def of(cls, source: Source) -> TextDenoiser:
        """The two with the weights of a pipeline."""
        network = cls(source.config)
        network.load_state_dict(_weights(source))
        return network.eval()

    @property
    def config(self) -> Any:
        """The transformer's, which the text encoder's follows from."""
        return self.transformer.config

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predicted noise for latents [B, C, H, W] and tokens [B, L]: [B, C, H, W]."""
        mask = (tokens != 0).long()
        text = self.text_encoder(tokens, attention_mask=mask).last_hidden_state
        sizes = {"resolution": None, "aspect_ratio": None}
        noise: torch.Tensor = self.transformer(
            latents, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=timesteps, added_cond_kwargs=sizes
        ).sample
        return noise


def transformer(config: dict[str, Any]) -> Any:
    """A PixArt transformer with the initialisation of Chen et al. (arXiv 2310.00426, section 2.3 and its code).

    diffusers leaves torch's defaults in place. Here the text has nothing to say at first, and the output is zero.
    """
    network: Any = PixArtTransformer2DModel.from_config(config)
    xavier_linears(network)
    embedder, projection = network.adaln_single.emb.timestep_embedder, network.caption_projection
    for layer in (embedder.linear_1, embedder.linear_2, network.adaln_single.linear, projection.linear_1, projection.linear_2):
        torch.nn.init.normal_(layer.weight, std=0.02)
    for block in network.transformer_blocks:
        torch.nn.init.zeros_(block.attn2.to_out[0].weight)
    torch.nn.init.zeros_(network.proj_out.weight)
    return network


def text_encoder(width: int) -> Any:
    """A T5 encoder of two layers for the captions' words."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer()), d_model=width, d_kv=32, d_ff=2 * width, num_layers=2, num_heads=width // 32,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


@dataclass(frozen=True)
class CaptionedSet:
    """``latents`` of the pictures as they are and mirrored, of unit spread: [2, N, C, H, W]; ``labels`` [N] and ``thirds`` [N, 3]."""

    latents: torch.Tensor
    labels: torch.Tensor
    thirds: torch.Tensor


def loss(model: Any, scheduler: Any, data: CaptionedSet, step: int, options: Settings, device: torch.device) -> torch.Tensor:
    """Mean squared error of the predicted noise over the step's pictures, each with a caption of its own: [B]."""
    picked = epoch_picks(len(data.labels), step, batch_size=options.batch_size, seed=options.seed)
    generator = draws(options.seed, step)
    mirrored = torch.rand(len(picked), generator=generator) < 0.5
    latents = data.latents[mirrored.long(), picked]
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.randint(0, len(scheduler.alphas_cumprod), (len(picked),), generator=generator)
    tokens = dropped(tokenized(captions(data, picked, mirrored, generator)), generator)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicted: torch.Tensor = model(noisy.to(device), timesteps.to(device), tokens.to(device))
    return (predicted.float() - noise.to(device)).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def held_out_losses(
    source: Source, folder: Path, count: int, draw: int, *, seed: int, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses over the first ``count`` test images as they are, and the timesteps: [N] each.

    Each has a caption, a noise and a timestep of the ``draw``; timesteps are spread evenly over the images, so that bins compare.
    """
    pipeline = text_pipeline(source)
    images, labels = load_images(folder, "test", pipeline.vae.config.sample_size)[:count], load_labels(folder, "test")[:count]
    thirds = Thirds.of(load_images(folder, "train", images.shape[-1]), load_labels(folder, "train"))
    latents = encoded(pipeline.vae, images) * pipeline.vae.config.scaling_factor
    data = CaptionedSet(latents[None], labels, thirds.place(images, labels))
    model, scheduler = TextDenoiser.of(source), DDPMScheduler.from_config(settings(source.scheduler))
    generator, total = draws(seed, draw), len(scheduler.alphas_cumprod)
    spread = (torch.randperm(len(images), generator=generator) * total // len(images)).to(torch.int64)
    losses = []
    for part in torch.arange(len(images)).split(batch_size):
        texts = captions(data, part, torch.zeros(len(part), dtype=torch.bool), generator)
        noise = torch.randn(latents[part].shape, generator=generator)
        predicted = model(scheduler.add_noise(latents[part], noise, spread[part]), spread[part], tokenized(texts))
        losses.append((predicted - noise).square().mean(dim=(1, 2, 3)))
    return torch.cat(losses).double(), spread


def captions(data: CaptionedSet, picked: torch.Tensor, mirrored: torch.Tensor, generator: torch.Generator) -> list[str]:
    """A caption for each of the pictures ``picked`` [B], of which some are seen ``mirrored`` [B]."""
    facts = zip(data.labels[picked].tolist(), data.thirds[picked].tolist(), mirrored.tolist(), strict=True)
    return [caption(label, thirds, turned, generator) for label, thirds, turned in facts]


@functools.cache
def _tokenizer() -> Any:
    return tokenizer()


def tokenized(texts: list[str]) -> torch.Tensor:
    """Token ids of captions, padded with 0 to the longest: int64 [B, L]."""
    ids: torch.Tensor = _tokenizer()(texts, padding="longest", return_tensors="pt").input_ids
    return ids


def dropped(tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The tokens [B, L] with a tenth of the captions empty, and a few words unknown."""
    unknown = (torch.rand(tokens.shape, generator=generator) < _WORD_DROPOUT) & (tokens >= _WORDS)
    tokens = tokens.masked_fill(unknown, _UNKNOWN)
    empty = torch.zeros_like(tokens[0])
    empty[0] = 1
    silent = torch.rand(len(tokens), generator=generator) < _CAPTION_DROPOUT
    return torch.where(silent[:, None], empty, tokens)


def _autoencoder(vae: Path | None) -> Path:
    folder = (vae or builtin_path(BUILTIN)) / "vae"
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"no such file: {folder / 'config.json'}", "python -m training.train_vae writes such a folder: --vae OUTPUT/pipeline"
        )
    return folder


def _load(folder: Path, config: dict[str, Any], *, vae: Path | None, output: Path) -> CaptionedSet:
    autoencoder: Any = AutoencoderKL.from_pretrained(_autoencoder(vae)).float()
    images, labels = load_images(folder, "train", autoencoder.config.sample_size), load_labels(folder, "train")
    latents = _cached(output / _LATENTS, images, autoencoder)
    shape = (config["in_channels"], config["sample_size"], config["sample_size"])
    if latents.shape[2:] != shape:
        raise UsageError(f"the autoencoder's latents are {tuple(latents.shape[2:])}; the transformer takes {shape}")
    return CaptionedSet(latents / latents.std(), labels, Thirds.of(images, labels).place(images, labels))


def _cached(path: Path, images: torch.Tensor, vae: Any) -> torch.Tensor:
    """Latents of the images and of their mirror images, from the file that an earlier start of the run wrote, if any: [2, N, C, H, W]."""
    if not path.exists():
        save_file({"latents": torch.stack([encoded(vae, images), encoded(vae, images.flip(-1))]).contiguous()}, path)
    latents = load_file(path)["latents"]
    if latents.shape[1] != len(images):
        raise ArtifactError(f"{path} has latents of {latents.shape[1]} pictures, and there are {len(images)}", "delete it")
    return latents


@torch.no_grad()
def encoded(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Means of the latents of uint8 images, unscaled: float32 [N, C, H, W]."""
    return torch.cat([vae.encode(to_unit_range(part)).latent_dist.mean for part in images.split(250)])


def _save(network: Any, scheduler: Any, path: Path, *, vae: Path | None, output: Path) -> None:
    scale, folder = 1 / load_file(output / _LATENTS)["latents"].std().item(), _autoencoder(vae)
    autoencoder: Any = AutoencoderKL.from_config(AutoencoderKL.load_config(folder), scaling_factor=scale)
    autoencoder.load_state_dict(AutoencoderKL.from_pretrained(folder).state_dict())  # whose own configuration has its path
    sampler = DDIMScheduler.from_config(scheduler.config, clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing")
    pipeline: Any = PixArtAlphaPipeline(tokenizer(), network.text_encoder, autoencoder.half(), network.transformer, sampler)
    pipeline.save_pretrained(path)


def _weights(source: Source) -> dict[str, torch.Tensor]:
    parts = {"transformer": source.model, "text_encoder": text_pipeline(source).text_encoder}
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


if __name__ == "__main__":
    main()
