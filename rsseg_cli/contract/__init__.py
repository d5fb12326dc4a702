"""The contract between backbones, methods and heads, and a map of the package. Read it first.

A model (`rsseg_cli.segmenter.Segmenter`) combines any backbone, any method and any head:

- image (B, C, H, W): standardised with the statistics in `Bands`, nodata at 0.
- `Backbone`, frozen: embeds the image and runs its transformer blocks one by one.
- `Method`, trainable: changes the tokens before and after each block, or adds branches inside the
  blocks (`Projection.add_branch`, `Backbone.add_parallel_branch`).
- `Features`: feature maps (B, D, h, w) of some blocks, and optional queries and losses.
- `Head`, trainable: computes an `Output`, with class probabilities (B, K, H, W), and its losses.

`Backbone.walk` is the only loop over the blocks; there the method's hooks are called. The training
loop calls its other hooks around each update, with a `Step`.

To add a backbone, method or head, write one file with one class; its name is the file's name:

- `methods/NAME.py`: a subclass of `Method`, which overrides the hooks that it needs.
- `heads/NAME.py`: a subclass of `Head`, and one of `Output`.
- `backbones/FAMILY.py`: a subclass of `Backbone`; for models of timm, of `_timm.TimmBackbone`.

Modules that methods and heads share are in `layers`. Around the model are `raster` (georeferenced
files), `metrics` (scores), `data` (labelled datasets and their tiles), `report`, `training`,
`predict` (maps of whole scenes), `evaluate`, `commands` and `cli`: a folder imports only folders
before it.

A batch may be divided among processes: pass each batch statistic and each denominator of a loss
through `batch_shard.mean`. The training loop seeds torch's generators by step, process and
micro-batch: draw random numbers with `nn.Dropout` or `torch.rand`.

Shape legend, used everywhere: B batch, C bands, H W pixels, h w token rows and columns, G token
groups per location, N = h*w*G patch tokens, P prefix tokens (class and registers), D width,
K classes, Q queries, L blocks.
"""

from rsseg_cli.contract.backbone import Backbone, fingerprint
from rsseg_cli.contract.bands import Bands
from rsseg_cli.contract.features import Features, Grid, QueryShape, State
from rsseg_cli.contract.head import Head, Output
from rsseg_cli.contract.method import Method, Probe, Step
from rsseg_cli.contract.projection import Projection, Role

__all__ = [
    "Backbone",
    "Bands",
    "Features",
    "Grid",
    "Head",
    "Method",
    "Output",
    "Probe",
    "Projection",
    "QueryShape",
    "Role",
    "State",
    "Step",
    "fingerprint",
]
