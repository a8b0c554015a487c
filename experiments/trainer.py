"""The training loop of the embedded generator: four stages, checkpoints, curves, samples, model card."""

from __future__ import annotations

import csv
import logging
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from experiments.moving_pictures import moving_pictures
from experiments.train_data import PictureSet, TrainingDataError
from experiments.train_models import Models, TrainConfig, calibrate_steps
from experiments.training import CHECKPOINT, rate_share, save_state
from packager.features import feature_distance, load_features
from packager.losses import frame_loss, rate_estimate
from player.autoencoder import count_parameters

log = logging.getLogger(__name__)

_WARM_UP_STEPS = 200
HELD_OUT_HEADING = "Held-out pictures, "
"""What begins the last part of a model card."""
STAGES = ("autoencoder", "latent", "joint", "adversarial")


def octaves(rank: int) -> list[int]:
    """Return 2, 4, 8... below a rank, and the rank itself."""
    return [*(2**k for k in range(1, 16) if 2**k < rank), rank]


@dataclass(frozen=True)
class Drawn:
    """What a step trains on."""

    frames: Tensor  # [N, 3, H, W]: first the first frames of pictures in motion, then their last ones
    between: Tensor  # [M, 3, H, W], what lies between those ends
    shares: Tensor  # [M], where


@dataclass(frozen=True)
class _Reconstruction:
    """What a step rendered."""

    loss: Tensor
    output: Tensor  # [2 N + M, 3, H, W]
    target: Tensor  # likewise
    terms: dict[str, float]


@dataclass
class Trainer:
    """Runs the stages over one set of networks, with checkpoints."""

    config: TrainConfig
    models: Models
    training: PictureSet
    held: PictureSet
    out: Path
    device: torch.device
    start: str = ""
    """What the networks were grown from, for the model card."""
    rng: np.random.Generator = field(init=False)
    stage: int = 0
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.config.seed)
        self.models.to(self.device)
        self.bank = Tensor()
        self._windows = torch.Generator().manual_seed(self.config.seed)
        self._judge: torch.optim.Optimizer  # the discriminator's, made when a stage begins

    # -- losses of the stages -------------------------------------------------------------------------------------

    def _noise(self, values: Tensor, half_width: float | Tensor) -> Tensor:
        return values + (torch.rand_like(values) * 2 - 1) * half_width

    def autoencoder_loss(self) -> tuple[Tensor, dict[str, float]]:
        """Stage 1: frames through latents and back."""
        config = self.config
        frames = self.training.crops(config.batch[0], config.crop, self.rng).to(self.device)
        low, high = config.latent_noise
        half_width = low * (high / low) ** torch.rand(len(frames), 1, 1, 1, device=self.device)
        latents = self._noise(self.models.encoder.latents(frames), half_width)
        loss = frame_loss(self.models.generator.decoder(latents).float(), frames).mean()
        return loss, {"pixel": loss.item()}

    def _prefix_rank(self) -> int:
        """Draw a rank below the full one; each octave is as likely as the next, as in a ladder."""
        return int(self.config.rank ** self.rng.random())

    def _embeddings(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (full, prefix) embeddings stacked on the batch axis, U and V."""
        config, generator = self.config, self.models.generator
        u, v = self.models.encoder.head(latents)
        noisy = self._noise(u, config.u_step / 2)
        rank = self._prefix_rank()
        full = generator.space.compose(noisy, v, config.norm_rank)
        prefix = generator.space.compose(noisy[..., :rank], v[:, :rank], config.norm_rank)
        return torch.cat([full, prefix]), u, v

    def latent_loss(self) -> tuple[Tensor, dict[str, float]]:
        """Stage 2: latents through prompts and the UNet, in latent space."""
        if not len(self.bank):
            self.bank = self._fill_bank()
        index = torch.from_numpy(self.rng.integers(len(self.bank), size=self.config.batch[1]))
        latents = self.bank[index].to(self.device, torch.float32)
        embeddings, u, v = self._embeddings(latents)
        denoised = self.models.generator.denoise(embeddings).float()
        error = (denoised - torch.cat([latents, latents])).square().mean(dim=(1, 2, 3))
        full, prefix = error.chunk(2)
        rate = rate_estimate(u, self.models.generator.settings.grid, self.config.u_step)
        loss = full.mean() + 0.5 * prefix.mean() + self.config.rate_weight[1] * rate + 1e-3 * v.square().mean()
        return loss, {"latent_full": full.mean().item(), "latent_prefix": prefix.mean().item(), "bits": rate.item()}

    def joint_loss(self) -> tuple[Tensor, dict[str, float]]:
        """Stage 3: frames through prompts and the whole generator."""
        rendered = self._reconstruction(self.draw())
        return rendered.loss, rendered.terms

    def draw(self) -> Drawn:
        """Draw a step's frames: photographs, and the ends of pictures in motion with what lies between."""
        config = self.config
        count = config.batch[self.stage]
        moving = int(config.moving_share * count / 2)
        photographs = self.training.crops(count - 2 * moving, config.size, self.rng).to(self.device)
        if not moving:
            return Drawn(photographs, photographs[:0], Tensor())
        clips, shares = moving_pictures(self.training, moving, config.size, self.rng)
        first, between, last = clips.to(self.device).unbind(dim=1)
        return Drawn(torch.cat([first, last, photographs]), between, shares.to(self.device))

    def _reconstruction(self, drawn: Drawn) -> _Reconstruction:
        """Render what was drawn: the frames at the full rank and at a prefix, and what lies between at one of them."""
        config, generator = self.config, self.models.generator
        embeddings, u, v = self._embeddings(self.models.encoder.latents(drawn.frames))
        moving = len(drawn.between)
        if moving:
            # what interpolating U and V apart gives does not differ (docs/RESULTS.md)
            at = len(drawn.frames) if self.rng.random() < 0.5 else 0
            first, last = embeddings[at : at + 2 * moving].chunk(2)
            embeddings = torch.cat([embeddings, torch.lerp(first, last, drawn.shares[:, None, None].to(first.dtype))])
        output = generator.generate(embeddings).float()
        target = torch.cat([drawn.frames, drawn.frames, drawn.between])
        losses = frame_loss(output, target)
        full, prefix, between = losses.split([len(drawn.frames), len(drawn.frames), moving])
        rate = rate_estimate(u, generator.settings.grid, config.u_step)
        loss = full.mean() + prefix.mean() + config.rate_weight[self.stage] * rate + 1e-4 * v.square().mean()
        terms = {"pixel_full": full.mean().item(), "pixel_prefix": prefix.mean().item(), "bits": rate.item()}
        if moving:
            loss = loss + config.between_weight * between.sum() / len(drawn.frames)
            terms["pixel_between"] = between.mean().item()
        return _Reconstruction(loss, output, target, terms)

    def adversarial_loss(self) -> tuple[Tensor, dict[str, float]]:
        """Stage 4: as stage 3, and the renderings should pass for photographs (hinge loss; Lim and Ye 2017).

        The adversarial gradient is scaled against the pixel gradient at the decoder's last layer (Esser et al. 2021,
        section 3.1), so that neither drowns the other as training goes on.
        """
        config, discriminator = self.config, self.models.discriminator
        drawn = self.draw()
        rendered = self._reconstruction(drawn)
        pixel, output, target, terms = rendered.loss, rendered.output, rendered.target, rendered.terms
        if config.feature_weight:
            apart = feature_distance(load_features(self.device), output, target, self._windows).mean()
            pixel = pixel + 2 * config.feature_weight * apart  # `pixel` sums two renderings of each frame
            terms["features"] = apart.item()
        terms["discriminator"] = self._train_discriminator(drawn.frames, output.detach())
        discriminator.requires_grad_(False)
        with torch.no_grad():
            _, wanted = discriminator(torch.cat([drawn.frames, drawn.between]))
        scores, features = discriminator(output)
        twice = len(drawn.frames)  # these are rendered at two ranks
        distances = [
            (found - torch.cat([want[:twice], want])).abs().mean() for found, want in zip(features, wanted, strict=True)
        ]
        matching = torch.stack(distances).sum()
        adversarial = -scores.mean()
        last = self.models.generator.decoder.body[-2].weight
        wanted_norm = torch.autograd.grad(pixel, last, retain_graph=True)[0].norm()
        found_norm = torch.autograd.grad(adversarial, last, retain_graph=True)[0].norm()
        scale = (config.adversarial_weight * wanted_norm / (found_norm + 1e-6)).clamp(max=10.0).detach()
        terms |= {"matching": matching.item(), "adversarial": adversarial.item(), "scale": scale.item()}
        return pixel + config.matching_weight * matching + scale * adversarial, terms

    def _train_discriminator(self, real: Tensor, rendered: Tensor) -> float:
        """Take one step of the discriminator on frames and their renderings; return its hinge loss."""
        discriminator = self.models.discriminator
        discriminator.requires_grad_(True)
        relu = nn.functional.relu
        loss = relu(1 - discriminator(real)[0]).mean() + relu(1 + discriminator(rendered)[0]).mean()
        self._judge.zero_grad(set_to_none=True)
        loss.backward()
        self._judge.step()
        return loss.item()

    @torch.no_grad()
    def _fill_bank(self) -> Tensor:
        """Return the latents [n, C, h, w] of two random frames of every training picture."""
        self.models.encoder.latents.eval()
        count = 2 * len(self.training.pictures)
        batches = []
        for _ in tqdm(range(math.ceil(count / 32)), desc="latents", disable=None):
            frames = self.training.crops(32, self.config.size, self.rng).to(self.device)
            batches.append(self.models.encoder.latents(frames).float().cpu())
        self.models.encoder.latents.train()
        return torch.cat(batches)

    # -- the loop -------------------------------------------------------------------------------------------------

    def _trained_parts(self) -> list[nn.Module]:
        encoder, generator = self.models.encoder, self.models.generator
        together: list[nn.Module] = [encoder, generator]
        return [[encoder.latents, generator.decoder], [encoder.head, generator], together, together][self.stage]

    def _parameters(self) -> list[nn.Parameter]:
        parameters = {id(p): p for part in self._trained_parts() for p in part.parameters()}
        if self.stage == 1:
            for p in self.models.generator.decoder.parameters():
                parameters.pop(id(p))
        return list(parameters.values())

    def run(self, *, seconds: float = math.inf) -> bool:
        """Train from where the state stands, for at most `seconds`; return whether the last stage is through."""
        deadline = time.monotonic() + seconds
        losses: list[Callable[[], tuple[Tensor, dict[str, float]]]]
        losses = [self.autoencoder_loss, self.latent_loss, self.joint_loss, self.adversarial_loss]
        while self.stage < len(STAGES):
            if self.config.steps[self.stage] and not self._run_stage(losses[self.stage], deadline):
                return False
            self.stage, self.step = self.stage + 1, 0
            self.save_checkpoint(None)
        return True

    def _run_stage(self, loss_of: Callable[[], tuple[Tensor, dict[str, float]]], deadline: float) -> bool:
        """Run the current stage; return False if the deadline (on the monotonic clock) cut it short."""
        config, total = self.config, self.config.steps[self.stage]
        for part in self.models.parts().values():
            part.train().requires_grad_(True)
        if self.stage:  # the latents' scale is fixed once the decoder has learnt it
            self.models.encoder.latents.norm.eval()
        parameters = self._parameters()
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate[self.stage], betas=(0.9, 0.98), weight_decay=1e-4, fused=True
        )
        self._judge = torch.optim.AdamW(self.models.discriminator.parameters(), lr=4e-4, betas=(0.5, 0.9), fused=True)
        if self.step and self._optimizer_state is not None and self._judge_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
            self._judge.load_state_dict(self._judge_state)
            for group in [*optimizer.param_groups, *self._judge.param_groups]:
                group["fused"], group["foreach"] = True, False  # stored groups carry the flags of the run before
        bar = tqdm(total=total, initial=self.step, desc=STAGES[self.stage], disable=None)
        began = time.monotonic()
        while self.step < total:
            rate = rate_share(self.step, total, _WARM_UP_STEPS)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate[self.stage] * rate
            with torch.autocast(self.device.type, torch.bfloat16):
                loss, terms = loss_of()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            self.step += 1
            bar.update()
            if self.step % 50 == 0:
                self._log({"stage": self.stage, "step": self.step, "loss": loss.item(), **terms})
                bar.set_postfix({k: f"{v:.3f}" for k, v in terms.items()})
            late = time.monotonic() > deadline
            if late or self.step % config.save_every == 0 or self.step == total:
                self.seconds += time.monotonic() - began
                began = time.monotonic()
                self.save_checkpoint(optimizer)
            if late and self.step < total:
                bar.close()
                return False
        bar.close()
        self.save_samples(self.out / f"samples_{STAGES[self.stage]}.png")
        return True

    def _log(self, row: dict[str, float]) -> None:
        path = self.out / "log.csv"
        columns = [
            "stage",
            "step",
            "loss",
            "pixel",
            "latent_full",
            "latent_prefix",
            "pixel_full",
            "pixel_prefix",
            "pixel_between",
            "bits",
            "discriminator",
            "matching",
            "adversarial",
            "scale",
            "features",
        ]
        fresh = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            if fresh:
                writer.writeheader()
            writer.writerow(row)

    # -- state ----------------------------------------------------------------------------------------------------

    _optimizer_state: dict | None = None
    _judge_state: dict | None = None

    def save_checkpoint(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Write the whole state, atomically."""
        state = {
            "config": asdict(self.config),
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
            "models": {name: part.state_dict() for name, part in self.models.parts().items()},
            "optimizer": optimizer.state_dict() if optimizer is not None else None,
            "judge": self._judge.state_dict() if optimizer is not None else None,
            "rng": repr(self.rng.bit_generator.state),
        }
        save_state(self.out, state)

    def resume(self) -> bool:
        """Take up the last checkpoint of the output folder, if there is one; return whether there was."""
        import ast

        path = self.out / CHECKPOINT
        if not path.exists():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        for name in ("size", "rank", "norm_rank", "width", "latent_channels"):
            if state["config"][name] != getattr(self.config, name):
                found = f"{name} {state['config'][name]}, expected {getattr(self.config, name)}"
                raise TrainingDataError(f"{path}: made with {found}")
        for name, part in self.models.parts().items():
            part.load_state_dict(state["models"][name])
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
        self._optimizer_state, self._judge_state = state["optimizer"], state["judge"]
        self.rng.bit_generator.state = ast.literal_eval(state["rng"])
        return True

    # -- looking at it --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reconstruct(self, frames: Tensor, rank: int | None) -> Tensor:
        """Return frames [N, 3, H, W] by the amortised encoder at a rank, or by the autoencoder alone (rank None)."""
        generator, step = self.models.generator, self.config.u_step
        latents = self.models.encoder.latents(frames)
        if rank is None:
            return generator.decoder(latents).float()
        u, v = self.models.encoder.head(latents)
        u = torch.round(u / step) * step
        return generator.generate(generator.space.compose(u[..., :rank], v[:, :rank], self.config.norm_rank)).float()

    def _evaluating(self) -> None:
        for part in self.models.parts().values():
            part.eval()

    def save_samples(self, path: Path) -> None:
        """Write a grid: held-out pictures; the autoencoder, until all is trained together; ranks from 2 by octaves."""
        self._evaluating()
        frames = self.held.centres(self.config.size, 8).to(self.device)
        ranks: list[int | None] = [*octaves(self.config.rank)] if self.stage else []
        if self.stage < 2:
            ranks.insert(0, None)
        rows = [frames, *(self.reconstruct(frames, rank) for rank in ranks)]
        grid = torch.stack(rows).clamp(-1, 1).add(1).mul(127.5).round().byte()  # [rows, N, 3, H, W]
        image = grid.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # [rows * H, N * W, 3]
        Image.fromarray(image.cpu().numpy()).save(path)

    def held_out_psnr(self) -> dict[str, float]:
        """Return the mean PSNR in dB over the held-out pictures, by the amortised encoder alone, per rank."""
        self._evaluating()
        frames = self.held.centres(self.config.size)
        out = {}
        ranks: list[int | None] = [1, *octaves(self.config.rank)]
        if self.stage < 2:  # trained together, UNet and decoder leave the autoencoder's latents behind
            ranks.insert(0, None)
        for rank in ranks:
            errors = []
            for batch in frames.split(16):
                output = self.reconstruct(batch.to(self.device), rank).clamp(-1, 1).cpu()
                errors.append(((output - batch) / 2).square().mean(dim=(1, 2, 3)))
            out["autoencoder" if rank is None else f"rank {rank}"] = (
                (-10 * torch.log10(torch.cat(errors))).mean().item()
            )
        return out

    def export(self, folder: Path) -> None:
        """Write the generator and its encoder in diffusers layout, in half precision, with a model card."""
        self._evaluating()
        frames = self.held.centres(self.config.size, 16).to(self.device)
        self.models.generator.step_scale.copy_(calibrate_steps(self.models, frames))
        self.models.encoder.latents.fold_normalisation()
        self.models.generator.save(folder)
        self.models.encoder.save(folder / "encoder")
        (folder / "MODEL_CARD.md").write_text(self._model_card())

    def _model_card(self) -> str:
        config, generator, encoder = self.config, self.models.generator, self.models.encoder
        sources = sorted({p.source for p in self.training.pictures})

        def millions(part: nn.Module) -> str:
            return f"{count_parameters(part) / 1e6:.2f}"

        psnr = "\n".join(f"| {name} | {value:.2f} |" for name, value in self.held_out_psnr().items())
        hardware = (
            torch.cuda.get_device_name() if self.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        )
        return f"""# Embedded generator

One-step latent generator for prompts, {config.size}x{config.size}, {generator.tokens} tokens of width {config.width},
ranks 1 to {config.rank}. Written by `python -m experiments.train_generator`.

- Data: {len(self.training.pictures)} pictures of {len(sources)} sources, no video;
  {len(self.held.pictures)} pictures more were held out. Of the frames of the joint and the adversarial stage
  {100 * config.moving_share:.0f} % are ends of pictures set in motion (experiments/moving_pictures.py), and what lies
  between is rendered from their interpolated prompts.
- Start: {self.start or "from nothing"}.
- Steps (autoencoder, latent, joint, adversarial): {config.steps}; frames a step: {config.batch}; seed {config.seed}.
- Hardware: {hardware} ({platform.machine()}), torch {torch.__version__}; {self.seconds / 60:.0f} minutes of training.
- Losses: mean absolute error and SSIM on three scales; latent squared error; an estimate of the prompts' bits; in the
  adversarial stage a patch discriminator trained along, its features, and those of our own network
  (packager/features.py). No network that a metric knows, so that LPIPS and SSIMULACRA2 stay honest measurements.
- Parameters (million): UNet {millions(generator.unet)}, decoder {millions(generator.decoder)}, encoder, which only the
  packager needs, {millions(encoder)}.

{HELD_OUT_HEADING}centre crops, prompts straight from the encoder (no fitting), U quantized with step {config.u_step}:

| prompt | PSNR (dB) |
|---|---|
{psnr}
"""
