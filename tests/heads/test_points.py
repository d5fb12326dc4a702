"""Points on the labelled ground, and labels read there."""

from __future__ import annotations

import torch

from rsseg_cli.classes import IGNORE
from rsseg_cli.heads._points import PointLabels, sample, spread


def test_spread_moves_nothing_where_all_is_labelled() -> None:
    points = torch.rand(2, 5000, 2)
    found = spread(points, torch.zeros(2, 37, 53, dtype=torch.uint8))
    torch.testing.assert_close(found, points, rtol=0, atol=2e-6)


def test_spread_is_uniform_on_the_labelled_pixels() -> None:
    torch.manual_seed(0)
    labels = torch.where(torch.rand(1, 9, 7) < 0.3, 1, IGNORE)
    labels[0, 4] = IGNORE
    labels[0, 8] = IGNORE
    points = spread(torch.rand(1, 60_000, 2), labels)[0]
    column, row = (points[:, 0] * 7).long(), (points[:, 1] * 9).long()
    counts = torch.zeros(9, 7).index_put_((row, column), torch.ones(60_000), accumulate=True)
    assert counts[labels[0] == IGNORE].sum() < 60  # points on an edge may round over it
    expected = 60_000 / int((labels != IGNORE).sum())
    drawn = counts[labels[0] != IGNORE]
    assert (drawn - expected).abs().amax() < 5 * expected**0.5
    inside = torch.stack((points[:, 0] * 7 - column, points[:, 1] * 9 - row))
    assert (inside.mean(1) - 0.5).abs().amax() < 0.01


def test_spread_at_the_upper_end_stays_on_labelled_rows() -> None:
    labels = torch.full((1, 64, 64), IGNORE)
    labels[0, 3, 5] = 0
    nearly_one = torch.full((1, 4, 2), 1 - 2.0**-24)
    points = spread(nearly_one, labels)
    assert ((points * 64).floor() == torch.tensor([5.0, 3.0])).all() or (
        points * 64 - torch.tensor([6.0, 4.0])
    ).abs().amax() < 1e-4


def test_labels_at_points_equal_reading_one_mask_per_class() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (2, 11, 13))
    points = torch.rand(2, 300, 2)
    masks = torch.nn.functional.one_hot(labels, 5).permute(0, 3, 1, 2).float()
    found = PointLabels.read(labels, points)
    torch.testing.assert_close(found.fractions(5), sample(masks, points), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.labelled, torch.ones(2, 300))
    chosen = torch.tensor([[4, 0], [1, 1]])
    shares = found.fractions(5).gather(1, chosen[..., None].expand(-1, -1, 300))
    torch.testing.assert_close(found.fractions_of(chosen), shares)


def test_ignored_corner_counts_as_neither_class() -> None:
    labels = torch.tensor([[[0, IGNORE], [1, 0]]])
    found = PointLabels.read(labels, torch.tensor([[[0.5, 0.5], [0.25, 0.25], [0.75, 0.25]]]))
    torch.testing.assert_close(found.labelled, torch.tensor([[0.75, 1.0, 0.0]]))
    torch.testing.assert_close(
        found.fractions(2), torch.tensor([[[0.5, 1.0, 0.0], [0.25, 0.0, 0.0]]])
    )
