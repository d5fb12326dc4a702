"""Mask2Former's mask classification head on up to four maps (Cheng et al., arXiv 2112.01527)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from rsseg_cli.contract import Features, Head, Output, QueryShape
from rsseg_cli.errors import RssegError
from rsseg_cli.heads._criterion import PointSampling, Predictions, set_losses
from rsseg_cli.heads._matching import LossWeights
from rsseg_cli.heads._pixel_decoder import STRIDES, PixelDecoder
from rsseg_cli.heads._query_decoder import Content, Position, QueryDecoder


@dataclass
class MaskOutput(Output):
    """Classes and masks of all queries: of every layer in training, otherwise of the last one."""

    predictions: Predictions

    def probabilities(self) -> Tensor:
        """Compute class probabilities (B, K, H, W) from the queries' classes and masks.

        The score of class c is sum_q softmax(class_q)_c * sigmoid(mask_q), without "no object".
        Scores are divided by their sum over the classes.
        """
        last = self.predictions
        with torch.autocast(last.pixels.device.type, enabled=False):
            classes = last.classes[-1].float().softmax(-1)[..., :-1]
            embeddings, pixels = last.embeddings[-1].float(), last.pixels.float()
            masks = torch.einsum("bqc,bchw->bqhw", embeddings, pixels).sigmoid()
            scores = torch.einsum("bqk,bqhw->bkhw", classes, masks)
            scores = F.interpolate(scores, self.size, mode="bilinear")
            # A pixel outside all masks has equal class probabilities instead of 0 / 0.
            scores = scores + 1.0e-12
            return scores / scores.sum(1, keepdim=True)


class Mask2Former(Head[MaskOutput]):
    """Pixel decoder and query decoder of Mask2Former, with a loss that leaves out `IGNORE`.

    Map i is resized to stride 4 * 2**i of the image. With fewer than four maps the coarser levels
    use the last one.
    """

    class Config(Head.Config):
        """Settings of the mask head; defaults as in Mask2Former."""

        width: int = Field(256, gt=0, multiple_of=32)
        """Channels C of the decoders and of `Features.queries`."""
        queries: int = Field(100, ge=1)
        """Masks per image; at least the number of classes in an image."""
        query_position: Position = "learned"
        """Position embeddings of the queries: "learned" by the head, or "method" for the
        `Features.queries` of a method that links its tokens (Rein, SpectralMoE)."""
        query_content: Content = "learned"
        """Initial content of the queries: "learned" by the head, or "projected" from their
        position embeddings (Rein)."""
        layers: int = Field(9, ge=1)
        """Layers of the query decoder; predictions are made before the first and after each."""
        encoder_layers: int = Field(6, ge=0)
        """Layers of deformable attention in the pixel decoder."""
        heads: int = Field(8, ge=1)
        """Attention heads of both decoders; they divide `width`."""
        ffn: int = Field(2048, ge=1)
        """Hidden width of the MLPs in the query decoder."""
        encoder_ffn: int = Field(1024, ge=1)
        """Hidden width of the MLPs in the pixel decoder."""
        points: int = Field(12_544, ge=1)
        """Points at which masks are compared; the default is 112 x 112."""
        oversample: float = Field(3.0, ge=1)
        """Candidates per point, from which the most uncertain are selected."""
        importance: float = Field(0.75, ge=0, le=1)
        """Fraction of the points selected for their uncertainty; the others are uniform."""
        class_weight: float = Field(2.0, ge=0)
        """Weight of the class term in matching and loss."""
        mask_weight: float = Field(5.0, ge=0)
        """Weight of the masks' binary cross-entropy in matching and loss."""
        dice_weight: float = Field(5.0, ge=0)
        """Weight of the masks' dice loss in matching and loss."""
        no_object: float = Field(0.1, ge=0)
        """Class weight of "no object"."""

        @property
        def queries_of_method(self) -> QueryShape | None:
            """Shape of the queries if their positions come from the method."""
            from_method = self.query_position == "method"
            return QueryShape(self.queries, self.width) if from_method else None

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
        self.pixel_decoder = PixelDecoder(
            dim,
            config.width,
            layers=config.encoder_layers,
            heads=config.heads,
            ffn=config.encoder_ffn,
        )
        self.query_decoder = QueryDecoder(
            config.width,
            queries=config.queries,
            layers=config.layers,
            heads=config.heads,
            ffn=config.ffn,
            classes=classes,
            position=config.query_position,
            content=config.query_content,
        )
        self.sampling = PointSampling(config.points, config.oversample, config.importance)
        self.weights = LossWeights(config.class_weight, config.mask_weight, config.dice_weight)

    def forward(self, features: Features, size: tuple[int, int]) -> MaskOutput:
        """Predict classes and masks for an image of `size` = (H, W)."""
        maps = [*features.maps, *[features.maps[-1]] * (len(STRIDES) - len(features.maps))]
        levels, pixels = self.pixel_decoder(maps, size)
        predictions = self.query_decoder(
            levels, pixels, features.queries, every_layer=self.training
        )
        return MaskOutput(size, predictions)

    def losses(self, output: MaskOutput, labels: Tensor) -> dict[str, Tensor]:
        """Compute the terms `class`, `mask` and `dice`, summed over the layers in `output`."""
        no_object = self.class_weights.new_full((1,), self.config.no_object)
        return set_losses(  # type: ignore[no-any-return]  # the decorator hides the type
            output.predictions,
            labels,
            sampling=self.sampling,
            weights=self.weights,
            class_weights=torch.cat((self.class_weights, no_object)),
        )
