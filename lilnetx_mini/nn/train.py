"""The training loop: one for plain networks and for compressed ones."""

from __future__ import annotations

import io
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..data import Split
from ..errors import CheckpointError, InputError
from ..lnx import write_atomic
from .compressor import Compressor, reparameterize
from .recipes import Recipe
from .targets import Steering, Targets

MOMENTUM = 0.9


@dataclass(frozen=True)
class Trained:
    """A finished run: the network, the compressor (None for a plain network), and the lines of metrics.jsonl."""

    model: nn.Module
    compressor: Compressor | None
    metrics: list[dict]


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Every image (N, C, H, W) moved by -most .. most pixels in each direction; what comes in is zero."""
    if most == 0:
        return x
    n, _, h, w = x.shape
    padded = F.pad(x, (most,) * 4)
    dy, dx = torch.randint(0, 2 * most + 1, (2, n, 1), generator=generator).to(x.device)
    count = torch.arange(max(x.shape), device=x.device)
    rows, columns = (dy + count[:h]).view(n, 1, h, 1), (dx + count[:w]).view(n, 1, 1, w)
    return padded[count[:n].view(n, 1, 1, 1), count[: x.shape[1]].view(1, -1, 1, 1), rows, columns]


def flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every image (N, C, H, W) mirrored left to right with probability one half."""
    mirror = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirror.view(-1, 1, 1, 1), x.flip(3), x)


@torch.no_grad()
def accuracy(model: nn.Module, split: Split, batch: int = 1000) -> float:
    """Share of a split's images that the network gets right, in eval mode; the mode it had comes back."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    right = 0
    for i in range(0, len(split), batch):
        classes = model(torch.from_numpy(split.x[i : i + batch]).to(device)).argmax(1).cpu().numpy()
        right += int((classes == split.y[i : i + batch]).sum())
    model.train(was_training)
    return right / len(split)


def warm_cosine(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: linearly up over the first `warmup` of the training, then to zero along a cosine.

    progress  0 .. 1
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def optimizers(model: nn.Module, compressor: Compressor | None, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """The recipe's optimisers for a network as it is now: plain (compressor None), or of latents."""
    if recipe.optimizer == "adam":
        if compressor is None:
            return [torch.optim.Adam(model.parameters(), lr=recipe.plain_lr, fused=True)]
        rates = recipe.lr, recipe.decoder_lr or None, recipe.density_lr, recipe.rest_lr or None
        return [torch.optim.Adam(compressor.parameter_groups(*rates), fused=True)]
    if recipe.optimizer != "sgd":
        raise InputError(f"optimizer {recipe.optimizer!r}: 'adam' and 'sgd' are the choices")
    if compressor is None:
        wide = [p for p in model.parameters() if p.ndim > 1]
        thin = [p for p in model.parameters() if p.ndim <= 1]
        rows = [{"params": wide, "weight_decay": recipe.weight_decay}, {"params": thin, "weight_decay": 0.0}]
        return [torch.optim.SGD(rows, lr=recipe.plain_lr, momentum=MOMENTUM, nesterov=True, fused=True)]
    for group in compressor.groups:
        group.free.requires_grad_(recipe.decoder_lr > 0)
    rows = compressor.sgd_groups(recipe.lr, recipe.rest_lr or None, recipe.weight_decay)
    return [
        torch.optim.SGD(rows, lr=recipe.lr, momentum=MOMENTUM, nesterov=True, fused=True),
        torch.optim.Adam(compressor.adam_groups(recipe.density_lr, recipe.decoder_lr), fused=True),
    ]


class Run:
    """One training run in a folder, resumable to the same numbers.

    folder     holds checkpoint.pt (written whole after every epoch) and metrics.jsonl
    compress   reparameterise the network and add the penalties
    device     "cpu", "cuda", or None for a GPU if there is one; images lie there, and on a GPU the network computes in bfloat16
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        folder: str | os.PathLike,
        compress: bool = True,
        device: str | None = "cpu",
    ) -> None:
        self.recipe, self.seed, self.folder, self.compress = recipe, seed, Path(folder), compress
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise InputError("device cuda: torch sees no GPU here")
        torch.set_num_threads(recipe.threads)
        torch.manual_seed(seed)
        self.splits = recipe.data()
        self.images, self.classes = (torch.from_numpy(a).to(self.device) for a in (self.splits.train.x, self.splits.train.y))
        self.generator = torch.Generator().manual_seed(seed)
        self.steps_an_epoch = math.ceil(len(self.splits.train) / recipe.batch)
        self.steps = recipe.epochs * self.steps_an_epoch
        self.begin = round(recipe.start * self.steps)  # the step at which weights become latents
        if self.begin >= self.steps:
            raise InputError(f"start={recipe.start}: a share below 1 is needed, or the weights never become latents")
        self.epoch, self.metrics = 0, []
        self.model = recipe.model().to(self.device)
        self.compressor: Compressor | None = None
        self.steering: Steering | None = None
        self.targets = Targets(recipe.target_size or None, recipe.target_flops or None, recipe.target_slices or None)
        self._optimise()
        if compress and self.begin == 0:
            self._reparameterize()

    def _reparameterize(self) -> None:
        """From here on the weights are latents, and the optimisers start anew."""
        init = self.recipe.init if self.begin == 0 else "from_weights"
        self.compressor = reparameterize(self.model, init=init, levels=self.recipe.levels)
        self._optimise()
        if self.targets:
            example = torch.from_numpy(self.splits.validation.x[:2])
            rates = [warm_cosine(n / self.steps, self.recipe.warmup) for n in range(self.begin, self.steps)]
            self.steering = Steering(self.targets, self.compressor, example, rates)

    def _optimise(self) -> None:
        if self.recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.network = torch.compile(self.model, dynamic=False) if self.recipe.compile else self.model
        self.optimizers = optimizers(self.model, self.compressor, self.recipe)
        self.peaks = [[g["lr"] for g in o.param_groups] for o in self.optimizers]

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _settings(self) -> str:
        numbers = {k: v for k, v in asdict(self.recipe).items() if isinstance(v, (int, float, str))}
        return json.dumps({**numbers, "seed": self.seed, "compress": self.compress}, sort_keys=True)

    def _save(self) -> None:
        state = {
            "settings": self._settings(),
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "compressed": self.compressor is not None,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "peaks": self.peaks,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "generator": self.generator.get_state(),
            "metrics": json.dumps(self.metrics),
            "steering": json.dumps(self.steering.state() if self.steering else {}),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.folder / "checkpoint.pt", buffer.getvalue())
        write_atomic(self.folder / "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in self.metrics).encode())

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; False if there is none, CheckpointError if it is of another run."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return False
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            settings = state["settings"]
        except Exception as e:
            raise CheckpointError(
                f"{path} is damaged ({type(e).__name__}): start again with --fresh, or delete it"
            ) from None
        if settings != self._settings():
            raise CheckpointError(
                f"{path} belongs to a run with other settings: choose another folder with --out, or start again with --fresh"
            )
        if state["compressed"] and not self.compressor:
            self._reparameterize()
        self.model.load_state_dict(state["model"])
        for optimizer, given in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(given)
        self.peaks = state["peaks"]  # those of latents depend on decoders, as they were when latents began
        torch.set_rng_state(state["torch_rng"])
        if self.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        self.generator.set_state(state["generator"])
        self.epoch, self.metrics = state["epoch"], json.loads(state["metrics"])
        if self.steering:
            self.steering.restore(json.loads(state["steering"]))
        self._schedule(self.epoch * self.steps_an_epoch)
        return True

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _schedule(self, step: int) -> float:
        """Sets the learning rates for this step and returns the share of the penalties."""
        if self.compress and not self.compressor and step >= self.begin:
            self._reparameterize()
        share = warm_cosine(step / self.steps, self.recipe.warmup)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
        if self.compressor:
            self.compressor.store_decoders(step >= (1 - self.recipe.stored_decoders) * self.steps)
        if self.steering:
            return 1.0
        return min(1.0, (step - self.begin) / max(self.recipe.ramp * (self.steps - self.begin), 1))

    def _multipliers(self) -> tuple[float, float]:
        """Of rate and group prior; with a target, those of the recipe (1 where they are 0) times what steers them."""
        rate, group = self.recipe.lam_rate, self.recipe.lam_group
        return ((rate or 1.0) * self.steering.rate, (group or 1.0) * self.steering.group) if self.steering else (rate, group)

    def _epoch(self) -> float:
        self.model.train()
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        order = torch.randperm(len(self.classes), generator=self.generator).to(self.device)
        for n, part in enumerate(order.split(self.recipe.batch)):
            share = self._schedule(self.epoch * self.steps_an_epoch + n)
            if self.steering:
                self.steering.look(self.epoch * self.steps_an_epoch + n - self.begin)
            x = shifted(self.images[part], self.recipe.shift, self.generator)
            x = flipped(x, self.generator) if self.recipe.flip else x
            x = x.to(memory_format=torch.channels_last) if self.recipe.channels_last else x
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                network = self.network if len(part) == self.recipe.batch else self.model  # compiled for one size
                loss = F.cross_entropy(network(x), self.classes[part], label_smoothing=self.recipe.label_smoothing)
            total += loss.detach() * len(part)  # added up where it is: nobody waits for the GPU
            if self.compressor:
                p, (lam_rate, lam_group) = self.compressor.penalty(), self._multipliers()
                loss = loss + share * (lam_rate * p.rate + lam_group * p.group + self.recipe.lam_l2 * p.l2)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
        return float(total) / len(self.classes)

    def fit(self, progress: bool = True, position: int = 0) -> Trained:
        """Train to the end, with a checkpoint after every epoch; `position` is the progress bar's line."""
        label = f"{self.recipe.name} seed {self.seed} {'LilNetX' if self.compress else 'plain':7}"
        with tqdm(
            total=self.recipe.epochs,
            initial=self.epoch,
            desc=label,
            unit="epoch",
            disable=not progress,
            position=position,
        ) as bar:
            while self.epoch < self.recipe.epochs:
                loss = self._epoch()
                self.epoch += 1
                line = {
                    "epoch": self.epoch,
                    "loss": round(loss, 5),
                    "validation_accuracy": accuracy(self.model, self.splits.validation),
                }
                if self.compressor:
                    weights_zero, slices_zero = self.compressor.zeros()
                    line |= {
                        "latent_bytes": self.compressor.coded_bytes(),
                        "weights_zero": weights_zero,
                        "slices_zero": slices_zero,
                    }
                self.metrics.append(line)
                self._save()
                bar.set_postfix(_postfix(line))
                bar.update()
        return Trained(self.model, self.compressor, self.metrics)


def _postfix(line: dict) -> dict[str, str]:
    shown = {"loss": f"{line['loss']:.3f}", "acc": f"{100 * line['validation_accuracy']:.1f} %"}
    if "latent_bytes" in line:
        shown |= {"kB": f"{line['latent_bytes'] / 1000:.2f}", "slices zero": f"{100 * line['slices_zero']:.0f} %"}
    return shown
