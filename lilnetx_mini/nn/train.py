"""The training loop: one for plain networks and for compressed ones, in one process or several."""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from ..data import ImageFiles, Split, batches
from ..errors import CheckpointError, InputError
from ..lnx import write_atomic
from . import probe
from .average import Average
from .compressor import Compressor
from .data import Step, in_order, source
from .distributed import ALONE, World, join
from .method import Method, Span, method
from .models import set_pixel_norm
from .objective import Objective
from .optimise import clip, optimizers, warm_cosine
from .recipes import Recipe
from .targets import Steering, Targets
from .weights import load_weights

SEEN = 5000  # images whose pixels are measured for a network that was trained elsewhere
SAVE_SECONDS = 600  # within an epoch, a checkpoint at least this often
DEFAULTS = {f.name: f.default for f in fields(Recipe) if isinstance(f.default, (int, float, str))}


@dataclass(frozen=True)
class Trained:
    """A finished run: the network, the compressor (None for a plain network), and the lines of metrics.jsonl."""

    model: nn.Module
    compressor: Compressor | None
    metrics: list[dict]


def right(outputs: Tensor, classes: Tensor) -> Tensor:
    """One for every image whose largest output is its class, zero for the others."""
    return (outputs.argmax(1) == classes).double()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split | ImageFiles,
    score: Callable[[Tensor, Tensor], Tensor] = right,
    batch: int | None = None,
    world: World = ALONE,
    workers: int = 0,
) -> float:
    """Mean of a score over a split, in eval mode; the mode it had comes back. Several processes share the work.

    score  (outputs, targets) to one number an image, (N,)
    batch  images at a time; as many as the split suggests if it is None
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    world.share(model.buffers())
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for x, y in in_order(split, device, batch or split.batch, world, workers):
        total += torch.stack([score(model(x), y).double().sum(), total.new_tensor(len(y))])
    model.train(was_training)
    points, count = world.add(total.tolist(), device)
    return points / max(count, 1)


def accuracy(model: nn.Module, split: Split | ImageFiles, batch: int | None = None) -> float:
    """Share of a split's images that the network gets right, in eval mode; the mode it had comes back."""
    return evaluate(model, split, right, batch)


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: torch sees no GPU here")
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


class Run:
    """One training run in a folder, resumable to the same numbers. Under ``torchrun``, one of the processes that share it.

    folder     holds checkpoint.pt (written whole after every epoch, and every ten minutes) and metrics.jsonl
    compress   reparameterise the network and add the penalties
    device     "cpu", "cuda", or None for a GPU if there is one; images lie there, and on a GPU the network computes in bfloat16
    teacher    a trained network, for recipes with distillation
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        folder: str | os.PathLike,
        compress: bool = True,
        device: str | None = "cpu",
        teacher: nn.Module | None = None,
    ) -> None:
        self.recipe, self.seed, self.folder, self.compress = recipe, seed, Path(folder), compress
        self.device = _device(device)
        self.world = join(self.device)
        if compress and (recipe.distill > 0) != (teacher is not None):
            raise InputError(f"distill={recipe.distill} and {'no' if teacher is None else 'a'} teacher: one needs the other")
        self.objective = Objective(recipe, teacher.to(self.device) if compress and teacher is not None else None)
        torch.set_num_threads(recipe.threads)
        torch.manual_seed(seed)
        self.splits = recipe.data()
        self.source = source(self.splits.train.first(recipe.images), recipe, self.device, self.world, seed)
        self.generator = torch.Generator().manual_seed(seed)  # of the order of images, and of what varies them
        if recipe.batch % (self.world.size * recipe.accumulate):
            parts = f"{self.world.size} processes with {recipe.accumulate} pieces each"
            raise InputError(f"batch={recipe.batch} cannot be shared evenly by {parts}")
        self.steps_an_epoch = math.ceil(len(self.source) / recipe.batch)
        self.steps = recipe.epochs * self.steps_an_epoch
        self.begin = round(recipe.start * self.steps)  # the step at which weights become latents
        if self.begin >= self.steps:
            raise InputError(f"start={recipe.start}: a share below 1 is needed, or the weights never become latents")
        self.epoch, self.step, self.metrics = 0, 0, []  # the step within the epoch
        self._before = self.generator.get_state()  # the generator at the start of the epoch
        self._total = torch.zeros((), device=self.device, dtype=torch.float64)  # of losses in the epoch
        self.model = recipe.model().to(self.device)
        if recipe.weights:
            self._start_from(recipe.weights)
        classes = int(self.splits.train.y.max()) + 1 if recipe.loss is None else 0
        probe.check(self.model, self.example(), recipe, classes)
        self.method: Method | None = None
        Targets.of(recipe)  # a wrong one is refused at once
        self._optimise()
        if compress and self.begin == 0:
            self._compress()

    @property
    def compressor(self) -> Compressor | None:
        """Of LilNetX, from the step on at which weights become latents."""
        return getattr(self.method, "compressor", None)

    @property
    def steering(self) -> Steering | None:
        """Of LilNetX with a target."""
        return getattr(self.method, "steering", None)

    def example(self) -> Tensor:
        """The first two images of the validation part that can be read, for tracing: (2, C, H, W)."""
        images = [torch.from_numpy(x) for x, _ in islice(batches(self.splits.validation, [], 1), 2)]
        if not images:
            raise InputError(f"none of {len(self.splits.validation)} validation images can be read")
        return torch.cat(images)

    def _start_from(self, weights: str) -> None:
        """Trained weights; where they know nothing of the pixels' mean and variance, those of training images."""
        if load_weights(self.model, weights):
            images = [torch.from_numpy(x) for x, _ in islice(batches(self.splits.train, [], 250), SEEN // 250)]
            set_pixel_norm(self.model, torch.cat(images))

    def _compress(self) -> None:
        """From here on the network is made small, and the optimisers start anew."""
        shared = self.world.size * self.recipe.accumulate > 1  # noise may not depend on who works on which images
        span = Span(self.begin, self.steps, self._agreed, self.seed if shared else None)
        self.method = method(self.model, self.example(), self.recipe, span)
        self._optimise()

    def _follow(self) -> None:
        """Train the method's network from here on if it is another one than before, in all processes the same."""
        if self.method.model is not self.model:
            self.model = self.method.model
            self.world.share([*self.model.parameters(), *self.model.buffers()])
            self._optimise()

    def _agreed(self, numbers: list[float]) -> list[float]:
        return self.world.from_first(numbers, self.device)

    def _optimise(self) -> None:
        if self.recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.network = self.model
        if self.world.size > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, devices)
        self.compiled = torch.compile(self.network, dynamic=False) if self.recipe.compile else self.network
        self.optimizers = self.method.optimizers() if self.method else optimizers(self.model, None, self.recipe)
        self.peaks = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.average = Average(self.model, self.recipe.ema) if self.recipe.ema else None

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _settings(self) -> dict:
        numbers = {k: v for k, v in asdict(self.recipe).items() if isinstance(v, (int, float, str))}
        return {**numbers, "seed": self.seed, "compress": self.compress}

    def _save(self) -> None:
        """Write a checkpoint of the run as it is; of several processes, the first does."""
        self.world.share(self.model.buffers())
        total = self.world.add([float(self._total)], self.device)
        if self.world.rank:
            return
        noise = self.method.generator if self.method else None
        state = {
            "settings": json.dumps(self._settings()),
            "probe": probe.fingerprint(probe.outputs(self.model, self.example())),
            "epoch": self.epoch,
            "step": self.step,
            "total": total,
            "model": self.model.state_dict(),
            "compressed": self.method is not None,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "peaks": self.peaks,
            "average": self.average.state() if self.average else None,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "noise": noise.get_state() if noise else None,
            "generator": self.generator.get_state(),
            "before": self._before,
            "metrics": json.dumps(self.metrics),
            "steering": json.dumps(self.method.state() if self.method else {}),
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
            settings = DEFAULTS | json.loads(state["settings"])  # an older version may not have had them all
        except Exception as e:
            raise CheckpointError(
                f"{path} is damaged ({type(e).__name__}): start again with --fresh, or delete it"
            ) from None
        way_out = "choose another folder with --out, or start again with --fresh, which deletes it"
        if settings != self._settings():
            now = self._settings()
            changed = ", ".join(f"{k} {v!r} and not {now.get(k)!r}" for k, v in settings.items() if v != now.get(k))
            raise CheckpointError(f"{path} belongs to a run with other settings, {changed}: {way_out}")
        if state["compressed"] and not self.method:
            self._compress()
        if self.method:
            self.method.restore(json.loads(state["steering"]))
            self._follow()
        another = f"{path} belongs to another network than the one that {self.recipe.name} makes now: {way_out}"
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError:
            raise CheckpointError(another) from None
        for optimizer, given in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(given)
        self.peaks = state["peaks"]  # those of latents depend on decoders, as they were when latents began
        if self.average:
            self.average.restore(state["average"])
        torch.set_rng_state(state["torch_rng"])
        if self.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        if self.method and self.method.generator and state["noise"] is not None:
            self.method.generator.set_state(state["noise"])
        self.generator.set_state(state["generator"])
        self._before = state["before"]
        self.epoch, self.step, self.metrics = state["epoch"], state["step"], json.loads(state["metrics"])
        self._total.fill_(state["total"][0] if self.world.rank == 0 else 0.0)
        done = self.epoch * self.steps_an_epoch + self.step
        self._schedule(max(done - 1, 0))  # the network is as it was when the checkpoint was written
        if "probe" in state and not probe.same(state["probe"], probe.fingerprint(probe.outputs(self.model, self.example()))):
            raise CheckpointError(another)
        self._schedule(done)
        return True

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _schedule(self, step: int) -> None:
        """Sets what depends on the step alone."""
        if self.compress and not self.method and step >= self.begin:
            self._compress()
        share = warm_cosine(step / self.steps, self.recipe.warmup)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
        if self.method:
            self.method.schedule(step)

    def _take(self, step: Step) -> None:
        """One step of the optimisers, on the pieces of a batch that are this process's."""
        r = self.recipe
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        for n, (x, y) in enumerate(step):
            last = n == len(step) - 1
            x = x.to(memory_format=torch.channels_last) if r.channels_last else x
            whole = len(y) * self.world.size * r.accumulate == r.batch
            waits = nullcontext() if last or self.world.size == 1 else self.network.no_sync()
            with waits:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda" or bool(r.bf16)):
                    loss = self.objective.task(self.compiled if whole else self.network, x, y)  # compiled for one size
                self._total += loss.detach() * len(y)  # added up where it is: nobody waits for the GPU
                if len(step) > 1:
                    loss = loss / len(step)
                if last and self.method:
                    loss = loss + self.method.penalty()
                loss.backward()
        if r.clip:
            scales = [peak / r.lr if r.optimizer == "sgd" and self.compressor else 1.0 for peak in self.peaks[0]]
            clip(self.optimizers[0], scales, r.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        if self.method:
            self.method.stepped()
        if self.average:
            self.average.update()

    def _epoch(self, after_step: Callable[[], object] = lambda: None) -> float:
        """From where the epoch stands to its end; the mean loss of its images."""
        self.model.train()
        if self.step:  # resumed within an epoch: its order comes from the generator as it was at the start
            now = self.generator.get_state()
            self.generator.set_state(self._before)
        else:
            self._before = self.generator.get_state()
            self._total.zero_()
        order = torch.randperm(len(self.source), generator=self.generator)
        order = torch.cat([order, order[: -len(order) % (self.world.size * self.recipe.accumulate)]])  # so that pieces are equal
        if self.step:
            self.generator.set_state(now)
        saved, first = time.monotonic(), self.epoch * self.steps_an_epoch
        for step in self.source.steps(order, self.epoch, self.step, self.generator):
            self._schedule(first + self.step)
            if self.method:
                with self.average.used() if self.average else nullcontext():
                    self.method.look(first + self.step)
                if self.method.model is not self.model:
                    self._follow()
                    self._schedule(first + self.step)
            self._take(step)
            self.step += 1
            after_step()
            if self.step % 10 == 0 and self._agreed([time.monotonic() - saved])[0] > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
        self.step = 0
        return self.world.add([float(self._total)], self.device)[0] / len(order)

    def _line(self, loss: float) -> dict:
        """What is known at the end of an epoch, with averaged weights where they are asked for."""
        with self.average.used() if self.average else nullcontext():
            r, held = self.recipe, self.splits.validation
            score = evaluate(self.model, held, r.score or right, None, self.world, r.workers)
            line = {"epoch": self.epoch, "loss": round(loss, 5), f"validation_{r.score_name}": score}
            if self.source.damaged:
                line["damaged_images"] = self.source.damaged
            line |= self.method.line() if self.method else {}
        return line

    def fit(self, progress: bool = True, position: int = 0) -> Trained:
        """Train to the end, with a checkpoint after every epoch; `position` is the progress bar's line."""
        label = f"{self.recipe.name} seed {self.seed} {'LilNetX' if self.compress else 'plain':7}"
        with tqdm(
            total=self.steps,
            initial=self.epoch * self.steps_an_epoch + self.step,
            desc=label,
            unit="step",
            mininterval=1.0,  # seconds, for the sake of log files
            disable=not progress or self.world.rank > 0,
            position=position,
            postfix=self._postfix(),
        ) as bar:
            while self.epoch < self.recipe.epochs:
                loss = self._epoch(bar.update)
                self.epoch += 1
                self.metrics.append(self._line(loss))
                self._save()
                bar.set_postfix(self._postfix())
        if self.average:
            self.average.swap()
        return Trained(self.model, self.compressor, self.metrics)

    def _postfix(self) -> dict[str, str]:
        """What the progress bar says beside the steps: epochs done, and how the last of them ended."""
        shown = {"epoch": f"{self.epoch}/{self.recipe.epochs}"}
        if not self.metrics:
            return shown
        line, name = self.metrics[-1], self.recipe.score_name
        score = line[f"validation_{name}"]
        shown |= {"loss": f"{line['loss']:.3f}", **({"acc": f"{100 * score:.1f} %"} if name == "accuracy" else {name: f"{score:.4g}"})}
        if "latent_bytes" in line:
            shown |= {"kB": f"{line['latent_bytes'] / 1000:.2f}", "slices zero": f"{100 * line['slices_zero']:.0f} %"}
        if "soft_flops_left" in line:
            shown |= {"MACs": f"{100 * line['flops_left']:.0f} %", "softly": f"{100 * line['soft_flops_left']:.0f} %"}
        if "soft_ms" in line:
            shown |= {"ms": f"{line['predicted_ms']:.3g}"}
        if "soft_bits" in line:
            shown |= {"bits": f"{line['bits']:.2f}", "softly": f"{line['soft_bits']:.2f}"}
        return shown
