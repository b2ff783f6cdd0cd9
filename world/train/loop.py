"""The training loop that all stages share: seeded by step, resumable at any moment, with a progress line and a log."""

import json
import math
import os
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..asset import unpack
from .muon import Muon

SAVE_SECONDS = 200
DECAY_SHARE = 0.2
LONGER_ON_GPU = 4
"""How many times as many steps a GPU learns from the pictures that it drew at once: it draws many as fast as few."""

Net = TypeVar("Net", bound=nn.Module)


def channels_last(net: Net) -> Net:
    """The network with its convolutions in the layout that is fastest for them."""
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def trained_weights(folder: Path, name: str, device: str = "cpu") -> dict[str, Tensor]:
    """The averaged weights of a stage, as far as it is trained."""
    return torch.load(folder / f"{name}.state.pt", map_location=device, weights_only=True)["averaged"]


def sent(value: Tensor, device: str) -> Tensor:
    """A tensor of the CPU's memory on a device; a GPU that is at work need not be waited for."""
    return value.pin_memory().to(device, non_blocking=True) if device == "cuda" else value.to(device)


class Stage(ABC):
    """One network's training. A step's data depends on the seed and the step's number alone."""

    name: str
    rate: float
    """Muon's: the share of a weight that a step changes."""
    average: float
    """How much of itself the averaged copy of the weights keeps at each step."""
    bank_steps = 1
    """The steps that pictures are drawn for at once, on a CPU."""

    def __init__(
        self, folder: Path, steps: int, batch: int, seed: int = 0, device: str = "cpu", start: Path | None = None
    ):
        self.folder = folder
        self.steps = steps
        self.batch = batch
        self.seed = seed
        self.device = device
        self.start = start
        if device == "cuda":
            self.bank_steps *= LONGER_ON_GPU

    @abstractmethod
    def build(self) -> nn.Module:
        """The network as training begins with it."""

    def shipped(self, part: str) -> dict[str, Tensor]:
        """The weights of the asset to start from whose names begin with `part`, without it; none without an asset."""
        if self.start is None:
            return {}
        weights, _ = unpack(self.start)
        return {name.removeprefix(part): weight for name, weight in weights.items() if name.startswith(part)}

    @abstractmethod
    def loss(self, net: nn.Module, step: int) -> Tensor:
        """The loss of one step, with its graph."""

    def outside(self, name: str) -> bool:
        """Whether a matrix is none of the network's inside: its first or last layer, or a table."""
        return False

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        inside = [name for name, value in net.named_parameters() if value.dim() > 1 and not self.outside(name)]
        return Muon(net, self.rate, inside)

    def learning_rate(self, step: int) -> float:
        """Rises over 100 steps, then stays, and falls to nothing over the last fifth of the steps."""
        left = (self.steps - step) / max(1, DECAY_SHARE * self.steps)
        return self.rate * min(1.0, (step + 1) / 100, max(left, 0.0))

    @property
    def state_file(self) -> Path:
        return self.folder / f"{self.name}.state.pt"

    def train(self, minutes: float = math.inf) -> bool:
        """Train until the steps or the minutes are over; whether all steps are done."""
        torch.manual_seed(self.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        net = self.build().to(self.device)
        averaged = {name: value.detach().clone() for name, value in net.state_dict().items()}
        optimizer = self.optimizer(net)
        step = self.load(net, averaged, optimizer)
        if step >= self.steps:
            return True
        current = net.state_dict()
        started = saved = time.monotonic()
        recent: list[Tensor] = []
        first = step
        while step < self.steps and time.monotonic() - started < minutes * 60:
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate(step)
            loss = self.loss(net, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            keep = min(self.average, (step + 1) / (step + 10))
            with torch.no_grad():
                for name, value in current.items():
                    if value.is_floating_point():
                        averaged[name].lerp_(value, 1 - keep)
                    else:
                        averaged[name].copy_(value)
            recent.append(loss.detach())
            step += 1
            now = time.monotonic()
            if len(recent) == 50 or step == self.steps:
                pace = (step - first) * self.batch / (now - started)
                self.log(step, torch.stack(recent).mean().item(), pace)
                recent = []
            if now - saved > SAVE_SECONDS:
                self.save(net, averaged, optimizer, step)
                saved = now
        self.save(net, averaged, optimizer, step)
        return step >= self.steps

    def load(self, net: nn.Module, averaged: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
        """Go on from the saved state, if there is one; the number of steps done."""
        if not self.state_file.is_file():
            return 0
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        for name, value in state["averaged"].items():
            averaged[name].copy_(value)
        return state["step"]

    def save(self, net: nn.Module, averaged: dict[str, Tensor], optimizer: torch.optim.Optimizer, step: int) -> None:
        partial = self.state_file.with_suffix(".partial")
        state = {"net": net.state_dict(), "averaged": averaged, "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, partial)
        os.replace(partial, self.state_file)

    def trained(self) -> dict[str, Tensor]:
        """The averaged weights as far as they are trained."""
        return trained_weights(self.folder, self.name, self.device)

    def log(self, step: int, loss: float, pace: float) -> None:
        line = {"step": step, "loss": round(loss, 5), "pictures_per_second": round(pace, 2), "batch": self.batch}
        with open(self.folder / f"{self.name}.log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        left = (self.steps - step) * self.batch / pace / 60
        told = f"{self.name} {step}/{self.steps} loss {loss:.4f}, {pace:.1f} pictures/s, {left:.0f} minutes to go"
        print(told, file=sys.stderr, flush=True)
