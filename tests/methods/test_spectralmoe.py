"""SpectralMoE against its equations written out, and what its gates promise."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from fakes import QUERIES, RGB, tiny_vit
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rsseg_cli.backbones._timm import ModelSize
from rsseg_cli.backbones.dinov3 import Dinov3
from rsseg_cli.backbones.vit import Vit
from rsseg_cli.contract import Backbone, Grid, QueryShape
from rsseg_cli.heads.linear import Linear
from rsseg_cli.heads.mask2former import Mask2Former
from rsseg_cli.methods._token.gate import affinity, choice_probability, imbalance
from rsseg_cli.methods._token.tokens import BLOCK, Routes, TokenExperts, dispatch
from rsseg_cli.methods.rein import Rein
from rsseg_cli.methods.spectralmoe import Routing, SpectralMoe
from rsseg_cli.segmenter import Segmenter

EIGHT = QueryShape(8, 256)


def build(
    backbone: Backbone | None = None,
    *,
    perturbed: bool = True,
    queries: QueryShape | None = EIGHT,
    **settings: Any,
) -> Any:
    """A small method with random parameters everywhere, in eval mode."""
    torch.manual_seed(0)
    small = {"tokens": 8, "rank": 4, "experts": 3, "depth": "random"}
    config = SpectralMoe.Config.model_validate(small | settings)
    method = SpectralMoe(config, backbone or tiny_vit(), queries)
    if perturbed:
        for name, parameter in method.named_parameters():
            if not name.startswith("depth_branch."):
                torch.nn.init.normal_(parameter, std=0.3)
    return method.eval()


# --- the equations ---------------------------------------------------------------------------


def by_the_equations(experts: TokenExperts, value: Any, x: Tensor, shares: Tensor) -> Tensor:
    """Equations (3) to (5) with every T_e built, every expert computed, and gates as factors."""
    tokens = experts.rows @ experts.basis  # (E, m, D)
    adjusted = []
    for own in tokens:
        weights = (x @ own.T / x.shape[-1] ** 0.5).softmax(-1)
        adjusted.append(weights[..., 1:] @ value(own[1:]))
    return (torch.stack(adjusted, 2) * shares[..., None]).sum(2)


def random_routes(batch: int, count: int, experts: int, k: int) -> Routes:
    chosen = torch.rand(batch, count, experts).topk(k, -1).indices
    shares = torch.zeros(batch, count, experts)
    return Routes(chosen, shares.scatter(-1, chosen, torch.rand(batch, count, k).softmax(-1)))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_sparse_dispatch_equals_the_dense_form(k: int) -> None:
    torch.manual_seed(k)
    experts, value = TokenExperts(experts=5, tokens=9, dim=32, rank=4), torch.nn.Linear(32, 32)
    torch.nn.init.normal_(experts.rows)
    torch.nn.init.normal_(experts.basis)
    x, routes = torch.randn(2, 3 * BLOCK + 7, 32), random_routes(2, 3 * BLOCK + 7, 5, k)
    found = experts.coefficients(x, routes) @ experts.span(value)
    expected = by_the_equations(experts, value, x, routes.weights)
    assert torch.allclose(found, expected, atol=1e-6, rtol=1e-5)
    parameters = (experts.rows, experts.basis, value.weight, value.bias)
    probe = torch.randn_like(found)
    ours = torch.autograd.grad((found * probe).sum(), parameters)
    theirs = torch.autograd.grad((expected * probe).sum(), parameters)
    for own, other in zip(ours, theirs, strict=True):
        assert torch.allclose(own, other, atol=1e-4, rtol=1e-4)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4 * BLOCK))
def test_every_row_lies_in_a_block_of_its_expert(chosen: list[int]) -> None:
    at, owner = dispatch(torch.tensor(chosen), 4)
    assert len(set(at.tolist())) == len(chosen)
    assert owner[at // BLOCK].tolist() == chosen
    assert len(owner) == -(-len(chosen) // BLOCK) + 4


def fused(kind: str, visual: Tensor, depth: Tensor) -> Tensor:
    """Equation (6) and its variants, on maps (B, N, D)."""
    scale = visual.shape[-1] ** -0.5
    if kind == "add":
        return visual + depth
    if kind == "released":
        attention = (depth @ visual.mT * scale).softmax(-1)
        return torch.einsum("bnn,bnc->bnc", attention, visual)
    attention = (visual @ depth.mT * scale).softmax(-1)
    return attention @ (depth if kind == "paper" else visual)


@pytest.mark.parametrize("fusion", ["paper", "released", "add"])
@pytest.mark.parametrize("gate", ["laplace", "softmax"])
@pytest.mark.parametrize(("gates", "k"), [("dual", 1), ("shared", 2)])
def test_a_block_equals_the_equations(fusion: str, gate: str, gates: str, k: int) -> None:
    backbone = tiny_vit()
    method = build(backbone, fusion=fusion, gate=gate, gates=gates, k=k)
    grid = Grid(3, 5)
    tokens, depth = torch.randn(2, backbone.num_prefix_tokens + 15, 64), torch.randn(2, 15, 64)
    method.depth_branch.advance = lambda index, state: depth
    out = method.after_block(2, tokens, Routing(grid))

    patches, maps = tokens[:, backbone.num_prefix_tokens :], []
    for modality, x in enumerate((patches, depth)):
        own = method.gates[2 * 2 + modality] if gates == "dual" else method.gates[2]
        logits = {
            "laplace": -torch.cdist(x, own.centres.T.expand(2, -1, -1)),
            "softmax": x @ own.centres,
        }[gate]
        kept = logits.topk(k).values.min(-1, keepdim=True).values
        shares = logits.masked_fill(logits < kept, -torch.inf).softmax(-1)
        block = method.adapter.block(2)
        maps.append(by_the_equations(block, method.adapter.value, x, shares))
    refined = patches + method.adapter.scale * method.adapter.mlp(patches + fused(fusion, *maps))
    assert torch.equal(
        out[:, : backbone.num_prefix_tokens], tokens[:, : backbone.num_prefix_tokens]
    )
    assert torch.allclose(out[:, backbone.num_prefix_tokens :], refined, atol=1e-5)


def test_rein_is_one_expert_without_gate_and_depth() -> None:
    backbone = tiny_vit()
    method = build(backbone, experts=1, gate="none", depth="off")
    rein = Rein(Rein.Config(rank=4), backbone, EIGHT).eval()
    rein.load_state_dict(method.state_dict())
    image = torch.randn(2, 3, 40, 24)
    ours, theirs = backbone(image, method), backbone(image, rein)
    for one, other in zip(ours.maps, theirs.maps, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(ours.queries, theirs.queries)


def test_query_link() -> None:
    method = build()
    link, queries = method.adapter.link, []
    for index in range(4):
        block = method.adapter.block(index)
        queries.append(link.project((block.rows @ block.basis).mean(0)))
    stacked = torch.stack(queries)
    joined = torch.cat([stacked.amax(0), stacked.mean(0), stacked[-1]], -1)
    assert torch.allclose(method.adapter.queries(), link.merge(joined), atol=1e-5)
    assert build(queries=None).adapter.queries() is None


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 5_737_985),
        ({"experts": 3}, 4_148_225),
        ({"experts": 1}, 3_088_385),
        ({"experts": 8}, 6_797_825),
        ({"depth": "off"}, 5_737_985 - 294_912),
        ({"gates": "shared"}, 5_737_985 - 294_912),
        ({"queries": None}, 5_737_985 - 459_264),
        ({"experts": 1, "gate": "none", "depth": "off"}, 2_990_081),
    ],
)
def test_counts_at_vit_large(settings: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        backbone = Dinov3(Dinov3.Config(name="dinov3_large", pretrained=False), RGB)
        queries = settings.pop("queries", QUERIES)
        config = SpectralMoe.Config.model_validate({"depth": "random"} | settings)
        method = SpectralMoe(config, backbone, queries)
    assert sum(p.numel() for _, p in method.trainable_parameters(backbone)) == count


# --- gates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1.0, 1e3])
def test_affinity_is_the_distance_up_to_a_shift(length: float) -> None:
    torch.manual_seed(0)
    x, centres = torch.randn(2, 9, 64) * length, torch.randn(64, 5) * 0.02
    exact = -torch.cdist(x.double(), centres.T.double().expand(2, -1, -1))
    found = affinity(x, centres, "laplace").double()
    shift = (exact - found).mean(-1, keepdim=True)
    assert torch.allclose(found + shift, exact, atol=1e-6 * length, rtol=1e-6)


def test_balance_is_zero_when_even_and_e_when_collapsed() -> None:
    for experts in (2, 6):
        even, collapsed = torch.full((experts,), 40.0), torch.zeros(experts)
        collapsed[1] = 40.0
        assert imbalance(even).item() == pytest.approx(0, abs=1e-6)
        assert imbalance(collapsed).item() == pytest.approx(experts, rel=1e-5)


def test_choice_probability_is_what_drawing_again_gives() -> None:
    torch.manual_seed(0)
    clean, deviation = torch.randn(1, 1, 4), torch.rand(1, 1, 4) + 0.3
    noisy = clean + torch.randn_like(clean) * deviation
    found = choice_probability(clean, noisy, deviation, 2)[0, 0]
    for expert in range(4):
        again = noisy[0, 0].repeat(200_000, 1)
        noise = torch.randn(len(again)) * deviation[0, 0, expert]
        again[:, expert] = clean[0, 0, expert] + noise
        share = (again.topk(2).indices == expert).any(1).float().mean()
        assert found[expert].item() == pytest.approx(share.item(), abs=0.005)


def losses_of(method: Any, backbone: Backbone, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return backbone(torch.randn(2, 3, 64, 64), method.train()).losses


def test_at_k_1_only_the_load_term_trains_the_gates() -> None:
    backbone = tiny_vit()
    backbone.requires_grad_(False)
    for load_weight in (1e-2, 0.0):
        method = build(backbone, perturbed=False, load_weight=load_weight)
        torch.autograd.backward(torch.stack(list(losses_of(method, backbone).values())).sum())
        for gate in method.gates:
            for parameter in (gate.centres, gate.spread):
                moved = parameter.grad is not None and bool(parameter.grad.any())
                assert moved == (load_weight > 0)
    method = build(backbone, k=2, load_weight=0.0)
    torch.autograd.backward(losses_of(method, backbone)["balance"])
    assert all(gate.centres.grad.any() for gate in method.gates)


def test_noise_acts_in_training_only_and_comes_from_the_global_stream() -> None:
    backbone, image = tiny_vit(), torch.randn(1, 3, 64, 64)
    method = build(backbone, perturbed=False)  # as made: routes are defined before any training
    first, again = (
        method.explain("routing", backbone.walk(image, method, stop=1)[1]) for _ in range(2)
    )
    assert torch.equal(first, again)
    assert len(first.argmax(1).unique()) > 1
    one, same, other = (losses_of(method, backbone, seed)["load"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert losses_of(build(backbone, experts=1), backbone) == {}
    assert set(losses_of(build(backbone, k=3), backbone)) == {"balance"}
    assert backbone(image, method.eval()).losses == {}


def test_bfloat16_agrees_with_float32() -> None:
    backbone, image = tiny_vit(), torch.randn(2, 3, 64, 48)
    method = build(backbone, perturbed=False)
    exact = backbone(image, method).maps[-1]
    with torch.autocast("cpu", torch.bfloat16):
        coarse = backbone(image, method).maps[-1]
    error = (exact - coarse).norm() / exact.norm()
    assert 0 < error < 0.02


# --- in a model ------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "groups"), [(40, 72, 1), (24, 40, 3)])
def test_grids_of_any_shape_and_groups(height: int, width: int, groups: int) -> None:
    method = build()
    grid = Grid(height // 8, width // 8, groups)
    tokens = torch.randn(2, 1 + grid.tokens, 64)
    state = method.begin(torch.randn(2, 3, height, width), grid)
    assert (state.depth_grid.h, state.depth_grid.w) == (grid.h, grid.w)
    assert method.after_block(0, tokens, state).shape == tokens.shape
    depth = method.depth_branch.advance(1, state)
    assert depth.shape == (2, grid.tokens, 64)
    same = depth.reshape(2, -1, groups, 64)
    assert torch.equal(same, same[:, :, :1].expand_as(same))


def test_queries_reach_the_mask_head_and_learn() -> None:
    backbone = tiny_vit()
    method = build(backbone, queries=QueryShape(8, 32))
    settings = {"width": 32, "queries": 8, "query_position": "method", "layers": 2, "points": 64}
    config = Mask2Former.Config.model_validate(settings)
    head = Mask2Former(config, dim=64, maps=4, classes=3)
    model = Segmenter(backbone, method, head, RGB).train()
    losses = model(torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64)))
    assert {"balance", "load"} <= set(losses)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    for name in ("link.merge.weight", "link.project.weight", "value.weight", "mlp.weight"):
        assert method.adapter.get_parameter(name).grad.any(), name
    assert method.adapter.block(0).basis.grad.any()


def test_both_encoders_stay_and_are_not_in_the_file() -> None:
    backbone = tiny_vit()
    method = build(backbone, perturbed=False)
    head = Linear(Linear.Config(), dim=64, maps=4, classes=3)
    backbone.weights_are_public = True
    model = Segmenter(backbone, method, head, RGB)
    frozen = [*backbone.parameters(), *method.depth_branch.parameters()]
    before = [parameter.clone() for parameter in frozen]
    adam = torch.optim.AdamW([p for _, p in model.trainable_parameters()], lr=1e-2)
    for _ in range(3):
        losses = model.train()(torch.randn(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64)))
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        adam.step()
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    packed = model.adapter_state()
    assert not [name for name in packed if "view" in name]
    assert packed["method.depth_digest"].numel() == 32


def test_compute_follows_k_and_stays_small_beside_the_encoder() -> None:
    class Wide(Vit):
        """One block of ViT-L."""

        sizes: ClassVar = {
            "block": ModelSize(
                "vit_tiny_patch16_224",
                patch=16,
                changes={"embed_dim": 1024, "depth": 1, "num_heads": 16},
                published=False,
            )
        }

    backbone = Wide(Wide.Config(name="vit_block"), RGB).requires_grad_(False)
    side, seen = Grid(32, 32), torch.randn(1, 1024, 1024)
    tokens = torch.randn(1, 1025, 1024, requires_grad=True)
    spent = {}
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(backbone.run(0, tokens, side).sum())
    spent["encoder"] = counter.get_total_flops()
    for experts in (1, 6):
        method = build(
            backbone, perturbed=False, queries=QUERIES, experts=experts, tokens=100, rank=16
        ).train()
        method.depth_branch.advance = lambda index, state: seen
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(method.after_block(0, tokens, Routing(side)).sum())
        spent[str(experts)] = counter.get_total_flops()
    assert spent["6"] < 0.2 * spent["encoder"]
    assert spent["encoder"] + spent["6"] < 1.06 * (spent["encoder"] + spent["1"])


# --- what a user sees --------------------------------------------------------------------------


def test_record_and_pictures() -> None:
    backbone = tiny_vit()
    method = build(backbone, perturbed=False)
    assert set(method.log_entry()) == {"scale"}
    losses_of(method, backbone)
    losses_of(method, backbone, seed=1)
    record = method.log_entry()
    for modality in ("visual", "depth"):
        shares = torch.tensor(record[modality])
        assert shares.shape == (4, 3)
        assert torch.allclose(shares.sum(1), torch.ones(4), atol=1e-3)
    assert set(method.log_entry()) == {"scale"}  # starts anew
    lines = [{"step": step, "method": record} for step in (50, 100)]
    pictures = dict(SpectralMoe.figures([*lines, {"step": 100, "val": {"miou": 0.5}}]))
    assert set(pictures) == {"experts_visual", "experts_depth"}
    assert pictures["experts_visual"].axes[0].images[0].get_array().shape == (12, 2)


def test_explain_shows_the_routes_of_a_pass() -> None:
    backbone, image = tiny_vit(), torch.randn(2, 3, 40, 64)
    method = build(backbone, perturbed=False, k=2)
    shares = method.explain("routing-depth", backbone.walk(image, method, stop=3)[1])
    assert shares.shape == (2, 3, 5, 8)
    assert torch.allclose(shares.sum(1), torch.ones(2, 5, 8))
    kept: list[Tensor] = []
    balance = method._balance

    def watch(index: int, state: Routing) -> None:
        kept.append(state.routes[1].weights)
        balance(index, state)

    method._balance = watch
    backbone(image, method)
    assert torch.equal(shares, kept[3].mT.reshape(2, 3, 5, 8))
    assert method.explanations()["routing"] == ("expert 1", "expert 2", "expert 3")
    assert set(build(backbone, depth="off").explanations()) == {"routing"}
    assert build(backbone, gate="none", k=3).explanations() == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 7}, "k 7 is more than experts 6"),
        ({"gate": "none"}, "without a gate"),
        ({"depth": "sonar"}, "depth"),
        ({"experts": 0}, "experts"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SpectralMoe.Config.model_validate(settings)
