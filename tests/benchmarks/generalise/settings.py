"""Settings that all runs share, and those of each method on a backbone of 128 channels.

Sizes of methods are a sixteenth of the width where their presets have 64 of 1024. All else that a
preset sets of data, augmentation, optimizer and head is replaced, so that methods differ in nothing
but themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsseg_cli import presets

COMMON = (
    "data.val_fraction=0",  # the target chooses nothing: the last step counts
    "data.sampling=balanced",  # a few labelled pixels in a scene must not be missed
    "data.class_weights=none",
    "augment.scale=[1.0, 1.0]",
    "augment.flip=true",
    "augment.rot90=true",
    "augment.gain=0.1",
    "augment.offset=0.1",
    "augment.band_gain=0.05",
    "augment.band_offset=0.05",
    "augment.noise=0.0",
    "augment.blur=0.0",
    "optimizer.lr=1.0e-2",
    "optimizer.backbone_lr=3.0e-4",
    "optimizer.weight_decay=0.05",
    "optimizer.betas=[0.9, 0.999]",
    "optimizer.clip_grad_norm=1.0",
    "optimizer.schedule=poly",
    "optimizer.power=0.9",
    "optimizer.warmup=10",
    "training.grad_accumulation=1",
    "training.precision=fp32",
    "training.activation_checkpointing=false",
    "training.compile=false",
    "training.num_workers=0",
)

METHODS: dict[str, tuple[str, ...]] = {
    "frozen": (),
    "full": (),
    "lora": ("method.rank=8", "method.alpha=8.0"),
    "adaptformer": ("method.bottleneck=16", "method.dropout=0.0"),
    "earth_adapter": ("method.bottleneck=8",),
    "crossearth_gate": (
        "method.active=3",
        "method.every=10",
        "method.samples=8",
        "method.rank=8",
        "method.alpha=8.0",
        "method.bottleneck=16",
        "method.frequency_bottleneck=8",
    ),
    "rein": ("method.tokens=16", "method.rank=8"),
    "set": ("method.tokens=16", "method.rank=8"),
    "fada": ("method.tokens=16", "method.rank=8"),
    "vpt": ("method.prompts=8",),
    # The linear head takes no queries: without them the maps attend to the tokens.
    "vqt": ("method.tokens=16",),
    "depthforge": (
        "method.tokens=16",
        "method.rank=8",
        "method.depth=off",
    ),
    "spectralmoe": (
        "method.tokens=16",
        "method.rank=8",
        "method.depth=off",
    ),
    "weft": ("method.channels=16", "method.heads=4", "method.drop_path=0.0"),
    "weft_released": ("method.channels=16", "method.heads=4", "method.drop_path=0.0"),
    "childtune": ("method.samples=64",),
    "fish": ("method.samples=64",),
    "fishertune": (
        "method.warmup=20",
        "method.estimation=20",
        "method.statistics=20",
        "method.gauge=10",
    ),
}
"""Settings by preset; one that is not here runs with its preset's own."""

VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "crossearth_gate": {
        "all_on": ("method.selection=all",),
        "random": ("method.selection=random",),
        "static": ("method.selection=static",),
        "by_layer": ("method.normalise=layer",),
    },
    "spectralmoe": {
        "no_moe": ("method.experts=1",),
        "softmax": ("method.gate=softmax",),
        # Random depth: shows that the path works, not what depth is worth.
        "random_depth": ("method.depth=random",),
        "random_depth_one_gate": ("method.depth=random", "method.gates=shared"),
    },
    "vpt": {"shallow": ("method.deep=false",)},
    "childtune": {"random": ("method.form=F",)},
    "weft": {
        "no_twe": ("method.twe=false",),
        "no_esto": ("method.esto=false",),
        "no_see": ("method.see=false",),
        "image_stem": ("method.stem_norm=image",),
    },
    "fishertune": {
        "random": ("method.score=random",),
        "fisher": ("method.score=fisher",),
        "domain": ("method.score=domain",),
        "plain": ("method.posterior=none",),
    },
}
"""Ablations: `method+variant` is the method with these settings changed."""


@dataclass(frozen=True)
class Budget:
    """Length of a training run."""

    steps: int
    batch: int


FULL = Budget(steps=80, batch=4)
QUICK = Budget(steps=40, batch=4)


def names() -> list[str]:
    """List what `--methods` takes."""
    plain = presets.names("methods")
    varied = [f"{name}+{one}" for name in plain for one in VARIANTS.get(name, ())]
    return sorted([*plain, *varied])


def changes(method: str, budget: Budget, *, seed: int, tile: int, patch: int) -> list[str]:
    """List what is changed of a method's preset, in the form of `--set`.

    Args:
        method: A preset, or `preset+variant`.
        budget: How long to learn.
        seed: Of the head, the method, the order of the data and their augmentation.
        tile: Side of a tile in pixels.
        patch: Side of a patch in pixels.
    """
    preset, _, variant = method.partition("+")
    own = VARIANTS[preset][variant] if variant else ()
    return [
        *COMMON,
        f"backbone.patch={patch}",
        f"data.tile={tile}",
        f"training.steps={budget.steps}",
        f"training.batch={budget.batch}",
        f"training.seed={seed}",
        *METHODS.get(preset, ()),
        *own,
    ]
