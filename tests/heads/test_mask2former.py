"""The mask head: counts, transformers' own forward as reference, queries, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_heads import CLASSES, DIM, SMALL, mask_head, plain
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)

from rsseg_cli.contract import Features, QueryShape
from rsseg_cli.errors import RssegError
from rsseg_cli.heads._criterion import Predictions
from rsseg_cli.heads._pixel_decoder import sine_positions
from rsseg_cli.heads._query_decoder import attention_mask
from rsseg_cli.heads.mask2former import Mask2Former, MaskOutput


def pyramid(height: int, width: int) -> list[Tensor]:
    return [torch.randn(2, DIM, height // s, width // s) for s in (4, 8, 16, 32)]


def transformers_modules() -> tuple[Any, Any]:
    """Pixel decoder and query decoder of transformers, in the sizes of `SMALL`."""
    config = Mask2FormerConfig(
        feature_size=SMALL["width"],
        mask_feature_size=SMALL["width"],
        hidden_dim=SMALL["width"],
        num_queries=SMALL["queries"],
        decoder_layers=SMALL["layers"] + 1,  # transformers counts predictions
        encoder_layers=SMALL["encoder_layers"],
        dim_feedforward=SMALL["ffn"],
        encoder_feedforward_dim=SMALL["encoder_ffn"],
    )
    pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=[DIM] * 4)
    return pixel_decoder, Mask2FormerTransformerModule(SMALL["width"], config)


def transformers_like(head: Mask2Former) -> tuple[Any, Any]:
    """The modules of transformers with the parameters of our head."""
    pixel_decoder, query_decoder = transformers_modules()
    pixel_decoder.load_state_dict(head.pixel_decoder.state_dict())
    state = head.query_decoder.state_dict()
    classes = [name for name in state if name.startswith("class_predictor.")]
    for name in classes:
        del state[name]
    query_decoder.load_state_dict(state)
    return pixel_decoder, query_decoder


def mask_logits(predictions: Predictions) -> Tensor:
    return torch.einsum("lbqc,bchw->lbqhw", predictions.embeddings, predictions.pixels)


@pytest.mark.parametrize(
    ("settings", "classes", "expected"),
    [
        ({}, 24, 20_566_489),  # SpectralMoE's head with own positions
        ({}, 6, 20_561_863),  # Earth-Adapter's logs, Potsdam and Vaihingen
        ({}, 7, 20_562_120),  # Earth-Adapter's logs, LoveDA
        ({"query_position": "method"}, 24, 20_566_489 - 25_600),
        (
            {"query_position": "method", "query_content": "projected"},
            24,
            20_566_489 - 2 * 25_600 + 256 * 257,
        ),
        ({"width": 96, "ffn": 768, "encoder_ffn": 320}, 2, 3_198_243),  # WEFT's decoder
    ],
)
def test_parameter_counts(settings: dict[str, Any], classes: int, expected: int) -> None:
    with torch.device("meta"):
        head = Mask2Former(Mask2Former.Config(**settings), dim=1024, maps=4, classes=classes)
    assert sum(parameter.numel() for parameter in head.parameters()) == expected


def test_decoders_equal_transformers() -> None:
    head, maps = mask_head(), pyramid(64, 96)
    pixel_decoder, query_decoder = transformers_like(head)
    reference = pixel_decoder(maps)
    levels, pixels = head.pixel_decoder(maps, (64, 96))
    for found, expected in zip(levels, reference.multi_scale_features, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pixels, reference.mask_features, rtol=1e-4, atol=1e-4)

    decoded = query_decoder(reference.multi_scale_features, reference.mask_features)
    found = head.train()(Features(maps), (64, 96)).predictions
    hidden = torch.stack(decoded.intermediate_hidden_states).transpose(1, 2)
    expected = head.query_decoder.class_predictor(hidden)
    torch.testing.assert_close(found.classes, expected, rtol=1e-3, atol=1e-4)
    expected = torch.stack(decoded.masks_queries_logits)
    torch.testing.assert_close(mask_logits(found), expected, rtol=1e-3, atol=1e-3)


def test_gradients_equal_transformers() -> None:
    head, maps = mask_head(), pyramid(64, 96)
    pixel_decoder, query_decoder = transformers_like(head)
    reference = pixel_decoder(maps)
    decoded = query_decoder(reference.multi_scale_features, reference.mask_features)
    hidden = torch.stack(decoded.intermediate_hidden_states).transpose(1, 2)
    predictions = head.train()(Features(maps), (64, 96)).predictions
    weights = torch.randn_like(predictions.classes)
    logits = head.query_decoder.class_predictor(hidden)
    torch.autograd.backward(
        (logits * weights).sum() + decoded.masks_queries_logits[-1].square().mean()
    )
    expected = dict(pixel_decoder.named_parameters()) | dict(query_decoder.named_parameters())
    head.zero_grad()
    torch.autograd.backward(
        (predictions.classes * weights).sum() + mask_logits(predictions)[-1].square().mean()
    )
    parameters = [*head.pixel_decoder.named_parameters(), *head.query_decoder.named_parameters()]
    compared = [(name, found) for name, found in parameters if name in expected]
    assert len(compared) == len(parameters) - 2  # the class predictor
    for name, found in compared:
        assert found.grad is not None
        torch.testing.assert_close(found.grad, expected[name].grad, rtol=1e-2, atol=1e-3)


def test_state_of_transformers_loads() -> None:
    head, maps = mask_head(), pyramid(64, 96)
    pixel_decoder, query_decoder = transformers_modules()
    pixel_decoder.level_embed.data.normal_()  # transformers leaves it uninitialised
    head.pixel_decoder.load_state_dict(pixel_decoder.state_dict())
    missing, unexpected = head.query_decoder.load_state_dict(
        query_decoder.state_dict(), strict=False
    )
    assert missing == ["class_predictor.weight", "class_predictor.bias"]
    assert not unexpected
    torch.testing.assert_close(
        head.pixel_decoder(maps, (64, 96))[1],
        pixel_decoder(maps).mask_features,
        rtol=1e-4,
        atol=1e-4,
    )


def test_queries_look_inside_their_mask_or_anywhere_if_it_is_empty() -> None:
    pixels = torch.tensor([[[1.0, -1.0, 0.0]]])
    mask = attention_mask(torch.tensor([[[1.0], [-1.0]]]), pixels)
    assert mask.tolist() == [[[[True, False, True], [False, True, True]]]]
    assert attention_mask(torch.tensor([[[1.0]]]), -pixels.abs() - 1).all()


def test_plain_maps_are_resized_to_strides_4_to_32() -> None:
    """Projecting, then resizing is the same as the other way round."""
    head, maps = mask_head(), plain()
    resized = [
        F.interpolate(cells, (64 // s, 96 // s), mode="bilinear")
        for cells, s in zip(maps, (4, 8, 16, 32), strict=True)
    ]
    reference = transformers_like(head)[0](resized)
    levels, pixels = head.pixel_decoder(maps, (64, 96))
    torch.testing.assert_close(pixels, reference.mask_features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(levels[0], reference.multi_scale_features[0], rtol=1e-4, atol=1e-4)


def test_positions_equal_transformers() -> None:
    cells = torch.zeros(1, 64, 5, 7)
    position = transformers_modules()[1].position_embedder
    expected = position(cells.shape, cells.device, cells.dtype, None).flatten(2)[0].T
    torch.testing.assert_close(sine_positions(cells), expected)


def test_every_layer_speaks_in_training_only() -> None:
    head, features = mask_head(), Features(plain())
    training = head.train()(features, (64, 96)).predictions
    evaluating = head.eval()(features, (64, 96)).predictions
    assert training.classes.shape == (5, 2, 12, CLASSES + 1)
    assert evaluating.classes.shape == (1, 2, 12, CLASSES + 1)
    torch.testing.assert_close(evaluating.classes[0], training.classes[-1], rtol=0, atol=0)


def test_probabilities_are_the_normalised_sum_over_queries() -> None:
    output: MaskOutput = mask_head().eval()(Features(plain()), (64, 96))
    classes = output.predictions.classes[0].softmax(-1)[..., :-1]
    masks = mask_logits(output.predictions)[0].sigmoid()
    scores = F.interpolate(
        torch.einsum("bqk,bqhw->bkhw", classes, masks), (64, 96), mode="bilinear"
    )
    torch.testing.assert_close(output.probabilities(), scores / scores.sum(1, keepdim=True))


def test_pixels_that_no_query_claims_are_undecided() -> None:
    nothing = Predictions(
        torch.zeros(1, 1, 3, 5), torch.ones(1, 1, 3, 2), torch.full((1, 2, 4, 4), -1e4)
    )
    torch.testing.assert_close(
        MaskOutput((16, 16), nothing).probabilities(), torch.full((1, 4, 16, 16), 0.25)
    )


def test_given_queries_take_the_place_of_learned_positions() -> None:
    own, maps = mask_head().eval(), plain()
    linked = mask_head(query_position="method").eval()
    state = own.state_dict()
    given = state.pop("query_decoder.queries_embedder.weight")
    linked.load_state_dict(state)
    expected = own(Features(maps), (64, 96)).probabilities()
    for queries in (given, given.expand(2, -1, -1)):
        found = linked(Features(maps, queries), (64, 96)).probabilities()
        torch.testing.assert_close(found, expected)
    other = torch.stack((given, given + 1))
    found = linked(Features(maps, other), (64, 96)).probabilities()
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] - expected[1]).abs().amax() > 1e-3


def test_projected_content_reaches_the_methods_queries() -> None:
    head = mask_head(query_position="method", query_content="projected")
    given = torch.randn(12, 64, requires_grad=True)
    output = head(Features(plain(), given), (64, 96))
    (gradient,) = torch.autograd.grad(output.predictions.classes[0].sum(), given)
    assert gradient.any()  # before the first layer only the content can carry it


def test_the_queries_that_it_takes_from_a_method() -> None:
    assert Mask2Former.Config(width=64).queries_of_method is None
    linked = Mask2Former.Config(query_position="method", queries=12, width=64)
    assert linked.queries_of_method == QueryShape(12, 64)


def test_fewer_maps_serve_several_levels() -> None:
    head = mask_head(maps=2)
    maps = plain(maps=2)
    few = head.eval()(Features(maps), (64, 96)).probabilities()
    four = head(Features([maps[0], maps[1], maps[1], maps[1]]), (64, 96)).probabilities()
    torch.testing.assert_close(few, four, rtol=0, atol=0)


def test_too_many_maps_are_refused() -> None:
    with pytest.raises(RssegError, match="1 to 4 maps, not 5"):
        mask_head(maps=5)


@pytest.mark.parametrize(
    "settings", [{"width": 100}, {"width": 64, "heads": 7}, {"queries": 0}, {"importance": 1.5}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Mask2Former.Config(**settings)


@pytest.mark.parametrize("classes", [1, 200])
def test_one_class_and_many(classes: int) -> None:
    head = mask_head(classes=classes)
    output = head.train()(Features(plain()), (64, 96))
    terms = head.losses(output, torch.randint(0, classes, (2, 64, 96)))
    assert all(torch.isfinite(term) for term in terms.values())
    assert output.probabilities().shape == (2, classes, 64, 96)


def test_initial_values_are_set_and_seeded() -> None:
    def make() -> Mask2Former:
        torch.manual_seed(3)
        return Mask2Former(Mask2Former.Config(**SMALL), dim=DIM, maps=4, classes=CLASSES)

    first, second = make().state_dict(), make().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(values.abs().amax() < 12 for values in first.values())  # nothing uninitialised
    head = make()
    for level_embed in (
        head.pixel_decoder.level_embed,
        head.query_decoder.level_embed.weight,
    ):
        assert 0.8 < level_embed.std() < 1.2
    attention = head.pixel_decoder.encoder.layers[0].self_attn
    offsets = attention.sampling_offsets.bias.view(8, 3, 4, 2)
    torch.testing.assert_close(
        offsets[0, 0], torch.arange(1.0, 5)[:, None] * torch.tensor([1.0, 0])
    )
    torch.testing.assert_close(offsets.abs().amax(-1), torch.arange(1.0, 5).expand(8, 3, 4))


def test_forward_compiles_without_a_break() -> None:
    head, features = mask_head(layers=3, encoder_layers=1).eval(), Features(plain())
    compiled = torch.compile(head.forward, fullgraph=True, backend="eager")
    found = compiled(features, (64, 96)).probabilities()
    torch.testing.assert_close(found, head(features, (64, 96)).probabilities())
