"""Simulated worlds: what a training run would come to, from a published law. No torch.

A world is a scaling law L(N, D), how far a run's settings are from the best ones for its size, and
the noise of a seed. It exists to try out searches, not models: see docs/simulation.md. Constants
are published, measured or marked *assumption*.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from budgetsweep.errors import ConfigError
from studies.scaling.law import PUBLISHED, ScalingLaw, steplaw_batch_tokens, steplaw_lr

if TYPE_CHECKING:
    from trainer.config import RunConfig

DEFAULT_WORLD = "porian2024-refinedweb"

FAR = math.log(10.0)
"""A setting so far from its best one (a factor of ten) begins to cost linearly, not squared."""

SHARPNESS = 8.0
"""How closely a loss follows the law before it bends towards that of ignorance."""
BEND = 1e6
"""So many times above what can be is ignorance without any further arithmetic."""


@dataclass(frozen=True)
class SimulatedWorld:
    """Losses of decoders without training them. All losses are nats per token."""

    name: str
    source: str
    """Where the law is from, in a few words."""
    law: ScalingLaw
    counts: Literal["charged", "body"] = "charged"
    """What the law's N is: the active parameters (`model.flops`), or those of the blocks alone, as
    authors count who leave embeddings out."""
    lr_factor: float = 1.5
    """Best peak learning rate as a multiple of StepLaw's (*assumption*: that, with N as counted
    here, is 4e-3 at 1e15; our own runs at 3e12 were best at 1.2e-2, half of it)."""
    lr_batch_exponent: float = 0.5
    """How the best learning rate follows the batch (Adam's square-root rule, Malladi et al. 2022,
    around StepLaw's batch)."""
    lr_curvature: float = 0.06
    """Nats for ln(lr / best)² = 1 (*assumption*: 0.03 for a factor of two, 0.6 for 30, about what
    Porian et al. 2024 gained by tuning all of batch, learning rate and beta2)."""
    diverges_at: float = 12.0
    """A learning rate so many times the best one ends a run (*assumption*)."""
    batch_factor: float = 1.0
    """Best tokens per step as a multiple of StepLaw's 0.58 · D^0.571."""
    batch_curvature: float = 0.02
    """Nats for ln(batch / best)² = 1 (*assumption*)."""
    aspect: float = 40.0
    """Best width / depth (*assumption*; Kaplan et al. 2020, fig. 5: flat from about 20 to 100)."""
    aspect_curvature: float = 0.01
    """Nats for ln(aspect / best)² = 1 (*assumption*: 2 % for a factor of four at 1 nat)."""
    head_dim: float = 32.0
    """Best width of a head (*assumption*)."""
    head_dim_curvature: float = 0.003
    context_nats: float = 6.0
    """What short sequences cost: so many nats, divided by seq_len (*assumption*: 0.19 at 32)."""
    sampling_nats: float = 10.0
    """What a sampled softmax costs: so many nats, divided by head_samples (*assumption*: 0.01 at
    1,024; docs/experiments.md has what it wins)."""
    muon_tokens: float = 1.4
    """Tokens that AdamW would need for one of Muon's (published: 1.4 to 2)."""
    anneal_nats: float = 0.12
    """How far the loss stands above that of a finished run while the rate is at its peak; in
    proportion to the rate (*assumption*; the cooldowns of Hägele et al. 2024 win about as much)."""
    warmup_fraction: float = 0.03
    warmup_curvature: float = 0.002
    beta2: float = 0.98
    beta2_curvature: float = 0.003
    """Nats for ln((1 - beta2) / (1 - best))² = 1; of the warm-up's share alike (*assumptions*)."""
    weight_decay: float = 0.1
    decay_nats: float = 1.0
    """Nats for (decay - best)² = 1, up to `decay_cap` (*assumption*: 0.01 without decay)."""
    decay_cap: float = 0.1
    dropout_nats: float = 0.5
    """Nats a unit of dropout: it only costs where text is seen once (*assumption*)."""
    noise_nats: float = 0.01
    """Standard deviation between seeds at `noise_tokens`; falls with D^-`noise_exponent`, at most
    `noise_cap`. 0.01 and more at 1e15 and 0.0013 at 124 M parameters are published figures."""
    noise_tokens: float = 2e7
    noise_exponent: float = 0.37
    noise_cap: float = 0.05

    @property
    def checksum(self) -> str:
        """Names the world and its constants, in the place of a text's checksum."""
        constants = json.dumps(dataclasses.asdict(self), sort_keys=True)
        digest = hashlib.sha256(constants.encode()).hexdigest()[:16]
        return f"simulated:{self.name}:{digest}"[:64]

    @property
    def description(self) -> str:
        """One line for screens and reports, in the place of a text's description."""
        return f"SIMULATED world {self.name} ({self.source}): no text, nothing trained"

    def size(self, config: RunConfig) -> float:
        """The law's N of a configuration."""
        if self.counts == "body":
            return float(max(1, config.n_block_params))
        return float(config.n_active_params)

    def best_lr(self, config: RunConfig, tokens: float) -> float:
        """The peak learning rate that suits a configuration's size, tokens and batch."""
        relative = config.tokens_per_step / self.best_batch_tokens(tokens)
        steplaw = steplaw_lr(self.size(config), tokens)
        return float(self.lr_factor * steplaw * relative**self.lr_batch_exponent)

    def best_batch_tokens(self, tokens: float) -> float:
        """Tokens of the optimiser step that suits so many tokens in all."""
        return self.batch_factor * steplaw_batch_tokens(tokens)

    def diverging_step(self, config: RunConfig) -> int | None:
        """The step (from 1) whose loss is NaN; None: the run ends well."""
        limit = self.diverges_at * self.best_lr(config, float(config.total_tokens))
        if config.max_lr <= limit:
            return None
        warmup = config.warmup_steps  # the rate of step t + 1 is max_lr · t / warmup until then
        return min(config.steps, int(limit / config.max_lr * warmup) + 2) if warmup else 1

    def settings_nats(self, config: RunConfig) -> float:
        """What the settings of a filled configuration cost beside size and tokens."""
        if config.max_lr <= 0.0:
            return math.inf
        tokens = float(config.total_tokens)
        shape = config.model
        lr = math.log(config.max_lr / self.best_lr(config, tokens))
        batch = math.log(config.tokens_per_step / self.best_batch_tokens(tokens))
        aspect = math.log(shape.n_embd / shape.depth / self.aspect)
        head = math.log(shape.head_dim / self.head_dim)
        warmup = math.log(max(config.warmup_steps, 1) / config.steps / self.warmup_fraction)
        beta2 = math.log(max(1.0 - config.beta2, 1e-6) / (1.0 - self.beta2))
        decay = min(abs(config.weight_decay - self.weight_decay), self.decay_cap)
        sampling = 0.0 if config.head_samples is None else self.sampling_nats / config.head_samples
        return (
            self.lr_curvature * _bowl(lr)
            + self.batch_curvature * _bowl(batch)
            + self.aspect_curvature * _bowl(aspect)
            + self.head_dim_curvature * _bowl(head)
            + self.warmup_curvature * _bowl(warmup)
            + self.beta2_curvature * _bowl(beta2)
            + self.decay_nats * decay**2
            + self.dropout_nats * shape.p_dropout
            + self.context_nats / config.seq_len
            + sampling
        )

    def loss_at(self, config: RunConfig, tokens: float, rate: float, settings_nats: float) -> float:
        """Noise-free loss on the way, never that of a model that knows nothing.

        Published laws know no such bound: what they say of small models on little text can be
        above ln V. It is bent smoothly (by 0.1 % at half way to ln V, by 8 % at ln V).

        Args:
            config: a filled configuration.
            tokens: seen so far.
            rate: learning rate now, of its peak.
            settings_nats: of the same method, which is slow.
        """
        ignorant = math.log(config.model.n_vocab)
        if tokens <= 0:
            return ignorant
        effective = tokens * (self.muon_tokens if config.optimizer == "muon" else 1.0)
        law = self.law.loss(self.size(config), effective)
        above = law - self.law.E + settings_nats + self.anneal_nats * rate
        most = ignorant - self.law.E
        if most <= 0 or above >= BEND * most:
            return ignorant
        return self.law.E + above / (1.0 + (above / most) ** SHARPNESS) ** (1.0 / SHARPNESS)

    def true_loss(self, config: RunConfig) -> float:
        """Loss of a filled configuration at its end, without noise; infinite where it diverges."""
        if self.diverging_step(config) is not None:
            return math.inf
        rate = config.final_lr / config.max_lr if config.max_lr > 0.0 else 1.0
        return self.loss_at(config, float(config.total_tokens), rate, self.settings_nats(config))

    def noise_sd(self, tokens: float) -> float:
        """Standard deviation between seeds after so many tokens."""
        if tokens <= 0:
            return 0.0
        return min(
            self.noise_cap, self.noise_nats * (self.noise_tokens / tokens) ** self.noise_exponent
        )

    def measured_loss(self, config: RunConfig) -> float:
        """What a run measures: the true loss and the noise of its seed."""
        return self.true_loss(config) + self.seed_noise(config) * self.noise_sd(config.total_tokens)

    def seed_noise(self, config: RunConfig) -> float:
        """Standard normal; a function of the configuration and its seed."""
        return float(self.random_of(config).standard_normal())

    def random_of(self, config: RunConfig) -> np.random.Generator:
        """Random numbers that belong to a configuration and its seed.

        Folder, device and the cadence of reports make no difference.
        """
        data = {**config.to_dict(), "trainer": "simulated", "world": self.name}
        for key in ("output_dir", "device", "checkpoint_seconds", "num_reports", "num_evals"):
            data.pop(key, None)
        digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def _bowl(distance: float) -> float:
    """distance² near zero, linear from about `FAR` on (the pseudo-Huber function)."""
    return 2.0 * FAR**2 * (math.sqrt(1.0 + (distance / FAR) ** 2) - 1.0)


WORLDS: dict[str, SimulatedWorld] = {
    world.name: world
    for world in (
        SimulatedWorld(
            name=DEFAULT_WORLD,
            source="our fit to the isoFLOP runs of Porian et al. 2024 on RefinedWeb",
            law=PUBLISHED[DEFAULT_WORLD],
        ),
        SimulatedWorld(
            name="hoffmann2022",
            source="Hoffmann et al. 2022, approach 3",
            law=PUBLISHED["hoffmann2022"],
            counts="body",
        ),
        SimulatedWorld(
            name="besiroglu2024",
            source="Besiroglu et al. 2024",
            law=PUBLISHED["besiroglu2024"],
            counts="body",
        ),
    )
}
"""By name."""


DRAWN = re.compile(r"drawn-(\d{1,9})")
"""Names of worlds whose constants are drawn: drawn-0, drawn-1, …"""


@functools.lru_cache(maxsize=64)
def drawn_world(seed: int) -> SimulatedWorld:
    """A world that nobody has seen: constants drawn widely around those of the named worlds.

    One world is one test of an interval, however many searches are made in it; many drawn ones are
    many. At 1e15 FLOPs the best size is about 3.4 million parameters (× or / 1.5) as in the default
    world, its loss 5.0 ± 0.4 nats: that of the default world is 5.5, our own recipe is at 5.4 with
    a hundredth of the FLOPs. All widths are *assumptions*.
    """
    rng = np.random.default_rng([seed, 0xD2A3])

    def times(middle: float, spread: float) -> float:
        return float(middle * math.exp(spread * rng.standard_normal()))

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    entropy, alpha, beta = times(1.8, 0.1), times(0.3, 0.25), times(0.3, 0.25)
    delta = min(1.0, times(0.45, 0.5))
    n_params, loss = times(3.4e6, 0.4), 5.0 + 0.4 * float(rng.standard_normal())
    # Where N is best, alpha · (A / N^alpha)^(1/delta) is beta · (B / D^beta)^(1/delta).
    size = (loss - entropy) / (1.0 + alpha / beta) ** delta
    data = size * (alpha / beta) ** delta
    tokens = 1e15 / 6.0 / n_params
    law = ScalingLaw(
        entropy, size * n_params**alpha, alpha, data * tokens**beta, beta, delta
    )  # fmt: skip
    return SimulatedWorld(
        name=f"drawn-{seed}",
        source="constants drawn around published ones",
        law=law,
        counts="body" if rng.random() < 0.5 else "charged",
        lr_factor=times(1.5, 0.5),
        lr_batch_exponent=between(0.0, 0.7),
        lr_curvature=times(0.06, 0.4),
        batch_factor=times(1.0, 0.5),
        batch_curvature=times(0.02, 0.4),
        aspect=times(40.0, 0.4),
        aspect_curvature=times(0.01, 0.4),
        head_dim=times(32.0, 0.4),
        context_nats=between(0.0, 12.0),
        sampling_nats=between(0.0, 20.0),
        muon_tokens=between(1.0, 1.6),
        anneal_nats=times(0.12, 0.4),
        beta2=1.0 - times(0.02, 0.5),
        weight_decay=between(0.0, 0.2),
        noise_nats=times(0.01, 0.5),
    )


def world_named(name: str) -> SimulatedWorld:
    """A world by its name.

    Raises:
        ConfigError: there is none.
    """
    drawn = DRAWN.fullmatch(name)
    if drawn is not None:
        return drawn_world(int(drawn[1]))
    if name not in WORLDS:
        known = ", ".join(WORLDS)
        raise ConfigError(
            f"simulated world {name[:40]!r}: expected one of {known}, or drawn-7 (any number)"
        )
    return WORLDS[name]
