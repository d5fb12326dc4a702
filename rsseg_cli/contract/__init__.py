"""The contract between backbones, methods and heads. Read this package first.

A model is a `Backbone` that runs its blocks one by one, a `Method` that acts between the blocks or
beside their branches, and a `Head` that turns the feature maps into class scores. None of the three
depends on the others' kinds. Images reach this level standardised (see `Bands`), with nodata at 0.

- `backbone`: the blocks, and the seam (`Backbone.walk`), a single loop over them.
- `method`: what is trained, hooks between blocks and around training steps, model files, figures.
- `head`: class scores and losses.
- `features`: values that pass between the three. `token_grid`: layout of patch tokens.
- `projection`: linear layers inside blocks, and listeners on them. `bands`: the image's channels.
- `step`: what hooks get from the training loop. `batch_shard`: averages over processes.

For batch statistics and loss denominators use `batch_shard.mean`, which averages over processes.
Random numbers are seeded by step, process and micro-batch: use `nn.Dropout` or `torch.rand`.

Shape legend, used everywhere: B batch, C bands, H W pixels, h w token rows and columns, G token
groups per location, N = h*w*G patch tokens, P prefix tokens (class and registers), D width,
K classes, Q queries, L blocks.
"""

from rsseg_cli.contract.backbone import Backbone, fingerprint
from rsseg_cli.contract.bands import Bands
from rsseg_cli.contract.features import Features, QueryShape, S, State
from rsseg_cli.contract.head import Head, O, Output
from rsseg_cli.contract.method import Method
from rsseg_cli.contract.projection import Listener, Projection, Role
from rsseg_cli.contract.step import Probe, Step
from rsseg_cli.contract.token_grid import Grid

__all__ = [
    "Backbone",
    "Bands",
    "Features",
    "Grid",
    "Head",
    "Listener",
    "Method",
    "O",
    "Output",
    "Probe",
    "Projection",
    "QueryShape",
    "Role",
    "S",
    "State",
    "Step",
    "fingerprint",
]
