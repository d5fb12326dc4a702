"""Classifies masks instead of pixels: Mask2Former's head on any four maps (arXiv 2112.01527)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig

from rsseg_cli.contract import Features, Head, Output, QueryShape
from rsseg_cli.errors import RssegError
from rsseg_cli.heads._criterion import Predictions, Sampling, set_losses
from rsseg_cli.heads._matching import Weights
from rsseg_cli.heads._pixel_decoder import STRIDES, PixelDecoder
from rsseg_cli.heads._query_decoder import Content, Position, QueryDecoder


@dataclass
class MaskOutput(Output):
    """Classes and masks of all queries: of every layer in training, else of the last one."""

    predictions: Predictions

    def probabilities(self) -> Tensor:
        """Sum the queries' masks by their classes, and divide by the sum over the classes.

        s_c = sum_q softmax(class_q)_c * sigmoid(mask_q), "no object" left out, is a score but no
        probability: it sums to anything. (B, K, H, W).
        """
        last = self.predictions
        with torch.autocast(last.pixels.device.type, enabled=False):
            classes = last.classes[-1].float().softmax(-1)[..., :-1]
            embeddings, pixels = last.embeddings[-1].float(), last.pixels.float()
            masks = torch.einsum("bqc,bchw->bqhw", embeddings, pixels).sigmoid()
            scores = torch.einsum("bqk,bqhw->bkhw", classes, masks)
            scores = F.interpolate(scores, self.size, mode="bilinear")
            # Where no query claims a pixel all classes are equally likely, not 0 / 0.
            scores = scores + 1.0e-12
            return scores / scores.sum(1, keepdim=True)


class Mask2Former(Head[MaskOutput]):
    """Pixel decoder and query decoder of Mask2Former, with a loss that knows `IGNORE`.

    Map i is brought to stride 4 * 2**i of the image, whatever its size: maps of a plain
    transformer and a pyramid are treated alike. With fewer than four maps the last one serves
    the coarser levels too.
    """

    class Config(Head.Config):
        """Settings of the mask head; the defaults are those of Mask2Former."""

        width: int = Field(256, gt=0, multiple_of=32)
        """Channels C of the decoders; `Features.queries` have as many."""
        queries: int = Field(100, ge=1)
        """Masks per image; classes beyond this number would go without one."""
        query_position: Position = "learned"
        """Whose the queries' position embeddings are: learned here, or `Features.queries` of a
        method that links its tokens (Rein, SpectralMoE). The head then owns none."""
        query_content: Content = "learned"
        """What queries start from: learned here, or a linear map of their positions (Rein)."""
        layers: int = Field(9, ge=1)
        """Layers of the query decoder; there is one more set of predictions, before the first."""
        encoder_layers: int = Field(6, ge=0)
        """Layers of deformable attention in the pixel decoder."""
        heads: int = Field(8, ge=1)
        ffn: int = Field(2048, ge=1)
        """Hidden width of the MLPs in the query decoder."""
        encoder_ffn: int = Field(1024, ge=1)
        """Hidden width of the MLPs in the pixel decoder."""
        points: int = Field(12_544, ge=1)
        """Points at which masks are compared: 112 x 112."""
        oversample: float = Field(3.0, ge=1)
        """Candidates per point, from which the most uncertain are taken."""
        importance: float = Field(0.75, ge=0, le=1)
        """Share of points taken for their uncertainty."""
        class_weight: float = Field(2.0, ge=0)
        """Weight of the classes' cross-entropy, in matching and loss; so are the next two."""
        mask_weight: float = Field(5.0, ge=0)
        dice_weight: float = Field(5.0, ge=0)
        no_object: float = Field(0.1, ge=0)
        """Class weight of queries without a class."""

        @property
        def queries_of_method(self) -> QueryShape | None:
            """Shape of the queries if their positions come from the method."""
            linked = self.query_position == "method"
            return QueryShape(self.queries, self.width) if linked else None

        @model_validator(mode="after")
        def _heads_divide_width(self) -> Mask2Former.Config:
            if self.width % self.heads:
                raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
            return self

    def __init__(self, config: Config, *, dim: int, maps: int, classes: int) -> None:
        super().__init__(config, dim=dim, maps=maps, classes=classes)
        if not 1 <= maps <= len(STRIDES):
            raise RssegError(
                f"the mask2former head takes 1 to {len(STRIDES)} maps, not {maps}",
                where="head.name",
                fix="four blocks in backbone.out_indices, or the linear head",
            )
        self.config = config
        structure = Mask2FormerConfig(
            feature_size=config.width,
            mask_feature_size=config.width,
            hidden_dim=config.width,
            num_queries=config.queries,
            num_attention_heads=config.heads,
            decoder_layers=config.layers + 1,  # transformers counts predictions
            encoder_layers=config.encoder_layers,
            dim_feedforward=config.ffn,
            encoder_feedforward_dim=config.encoder_ffn,
        )
        self.pixel_decoder = PixelDecoder(structure, dim)
        self.query_decoder = QueryDecoder(
            structure,
            classes=classes,
            position=config.query_position,
            content=config.query_content,
        )
        self.sampling = Sampling(config.points, config.oversample, config.importance)
        self.weights = Weights(config.class_weight, config.mask_weight, config.dice_weight)

    def forward(self, features: Features, size: tuple[int, int]) -> MaskOutput:
        """Predict classes and masks for an image of `size` = (H, W)."""
        maps = [*features.maps, *[features.maps[-1]] * (len(STRIDES) - len(features.maps))]
        levels, pixels = self.pixel_decoder(maps, size)
        predictions = self.query_decoder(
            levels, pixels, features.queries, every_layer=self.training
        )
        return MaskOutput(size, predictions)

    def losses(self, output: MaskOutput, labels: Tensor) -> dict[str, Tensor]:
        """Name the terms `class`, `mask` and `dice`, summed over the layers in `output`."""
        no_object = self.class_weights.new_full((1,), self.config.no_object)
        terms: dict[str, Tensor] = set_losses(
            output.predictions,
            labels,
            sampling=self.sampling,
            weights=self.weights,
            class_weights=torch.cat((self.class_weights, no_object)),
        )
        return terms
