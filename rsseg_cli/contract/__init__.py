"""The contract between backbones, methods and heads: the map of the package. Read it first.

A model is a `rsseg_cli.segmenter.Segmenter`: any backbone, any method and any head.

    image (B, C, H, W)   standardised with the statistics in `Bands`, nodata at 0
      `Backbone`         frozen transformer: `embed`, then `run` for each block
      `Method`           trainable: changes the tokens before and after each block, or adds
                         branches inside blocks (`Projection.add_branch`)
      `Features`         feature maps (B, D, h, w), and optional queries and losses of the method
      `Head`             trainable: computes class scores from the features
      `Output`           class probabilities (B, K, H, W), from which `Head.losses` is computed

`Backbone.walk` is the only loop over the blocks, where backbone and method meet. The training loop
calls the method's hooks around each update with a `Step`.

To add a backbone, method or head, write one file with one class; its name is the file's name:

- `methods/NAME.py`: a subclass of `Method`, which overrides the hooks that it needs.
- `heads/NAME.py`: a subclass of `Head`, and one of `Output`.
- `backbones/FAMILY.py`: a subclass of `Backbone`; for models of timm, of `_timm.TimmBackbone`.

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
