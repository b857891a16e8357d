"""The codebook against brute force, the straight-through gradient, the moving averages against the paper's equations."""

from __future__ import annotations

import pytest
import torch

import dlops
from dlops.bench.stock import stock
from dlops.models.autoencoders.vqvae import VQVAE, Codebook, perplexity


def made(preset: str = "digits", **overrides: object) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE.from_preset(preset, **overrides).double()


def codebook(codes: int = 7, width: int = 3, **overrides: object) -> Codebook:
    torch.manual_seed(0)
    return Codebook(codes, width, **overrides).double()


def test_nearest_is_that_of_all_distances() -> None:
    book, rows = codebook(), 2 * torch.randn(500, 3).double()
    by_hand = (rows[:, None] - book.vectors).square().sum(2).argmin(1)
    assert torch.equal(book.nearest(rows), by_hand)
    assert len(by_hand.unique()) == 7  # all are tried


def test_indices_lie_where_their_vectors_do() -> None:
    book, z = codebook().eval(), torch.randn(2, 3, 4, 5).double()
    quantised, indices = book(z)
    assert quantised.shape == z.shape and indices.shape == (2, 4, 5)
    for n, y, x in ((0, 0, 0), (1, 3, 4), (1, 2, 0)):
        nearest = (z[n, :, y, x] - book.vectors).square().sum(1).argmin()
        assert indices[n, y, x] == nearest
        torch.testing.assert_close(quantised[n, :, y, x], book.vectors[nearest])


def test_gradients_pass_straight_through() -> None:
    network, image = made().eval(), torch.rand(3, 1, 8, 8).double()
    z = network.encoder(image).detach().requires_grad_()
    quantised, indices = network.codebook(z)
    (network.decoder(quantised) - image).square().sum().backward()
    leaf = network.codebook.look_up(indices).requires_grad_()
    (network.decoder(leaf) - image).square().sum().backward()
    torch.testing.assert_close(z.grad, leaf.grad, rtol=0, atol=1e-12)
    assert leaf.grad.abs().max() > 0


def test_commitment_pulls_the_encoder_alone() -> None:
    network, image = made(), torch.rand(3, 1, 8, 8).double()
    network.eval()
    z = network.encoder(image)
    _, commitment, indices = network(image)
    by_hand = (z - network.codebook.vectors[indices].movedim(-1, 1)).square().mean()
    torch.testing.assert_close(commitment, by_hand)
    weight = network.encoder[0].weight
    pulls = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (commitment, by_hand))
    torch.testing.assert_close(*pulls)
    commitment.backward()
    assert all(p.grad is not None for p in network.encoder.parameters())
    assert all(p.grad is None for p in network.decoder.parameters())


def test_the_codebook_follows_the_moving_averages() -> None:
    """Equations 6 to 8 of appendix A.1, by a loop over the codes."""
    book, rows = codebook(decay=0.9, restart=0.0), torch.randn(50, 3).double()
    counts, sums = book.counts.clone(), book.sums.clone()
    for _ in range(3):
        chosen = book.nearest(rows)
        for k in range(7):
            mine = rows[chosen == k]
            counts[k] = 0.9 * counts[k] + 0.1 * len(mine)
            sums[k] = 0.9 * sums[k] + 0.1 * mine.sum(0)
        book(rows)
        torch.testing.assert_close(book.counts, counts)
        torch.testing.assert_close(book.vectors, sums / counts[:, None])


def test_on_fixed_data_the_codebook_ends_at_the_means_of_its_cells() -> None:
    """The moving averages are an online k-means."""
    book, rows = codebook(codes=4, decay=0.5, restart=0.0), torch.randn(200, 3).double()
    for _ in range(60):
        book(rows)
    chosen = book.nearest(rows)
    means = torch.stack([rows[chosen == k].mean(0) for k in range(4)])
    torch.testing.assert_close(book.vectors, means, rtol=0, atol=1e-9)


def test_a_forgotten_code_restarts_at_an_input() -> None:
    book, rows = codebook(decay=0.5, restart=0.1), torch.randn(40, 3).double()
    with torch.no_grad():
        book.vectors[2] = book.sums[2] = 100.0
    for _ in range(10):
        book(rows)
    assert book.vectors[2].abs().max() < 5


def test_evaluation_changes_nothing() -> None:
    book = codebook().eval()
    before = book.vectors.clone()
    book(torch.randn(5, 3).double())
    assert torch.equal(book.vectors, before)


def test_perplexity_is_the_number_of_codes_equally_used() -> None:
    assert perplexity(torch.arange(8).repeat(3), 8) == pytest.approx(8)
    assert perplexity(torch.arange(4).repeat(3), 8) == pytest.approx(4)
    assert perplexity(torch.zeros(5, dtype=torch.int64), 8) == pytest.approx(1)


@pytest.mark.parametrize(("stride", "blocks"), [(2, 0), (4, 2)])
def test_shapes(stride: int, blocks: int) -> None:
    network = made(stride=stride, blocks=blocks, channels=3).eval()
    image = torch.rand(2, 3, 8, 16).double()
    reconstruction, commitment, indices = network(image)
    assert reconstruction.shape == image.shape and commitment.shape == ()
    assert indices.shape == (2, 8 // stride, 16 // stride)
    assert torch.equal(network.encode(image), indices)
    torch.testing.assert_close(network.decode(indices), reconstruction)


def test_the_paper_has_as_many_parameters() -> None:
    """Section 4.1 with 256 channels: 4x4, 4x4, 3x3, two blocks of 3x3 and 1x1, 1x1; backwards in the decoder."""

    def layer(side: int, given: int, made: int) -> int:
        return side * side * given * made + made

    blocks = 2 * (layer(3, 256, 256) + layer(1, 256, 256))
    encoder = layer(4, 3, 256) + layer(4, 256, 256) + layer(3, 256, 256) + blocks + layer(1, 256, 256)
    decoder = layer(3, 256, 256) + blocks + layer(4, 256, 256) + layer(4, 256, 3)
    with torch.device("meta"):
        network = VQVAE.from_preset("original")
    assert sum(p.numel() for p in network.parameters()) == encoder + decoder
    assert network.codebook.vectors.shape == (512, 256)


@pytest.mark.parametrize("blocks", [0, 1])
def test_plain_torch_gives_the_same(blocks: int) -> None:
    network, image = made(blocks=blocks).float().eval(), torch.rand(4, 1, 8, 8)
    plain = stock(network)
    assert list(plain.state_dict()) == list(network.state_dict())
    with dlops.backend("dlops"), torch.no_grad():
        torch.testing.assert_close(network(image), plain(image), rtol=1e-5, atol=1e-5)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="VQVAE: stride must be 2 or 4: got 3"):
        VQVAE(stride=3)
    with pytest.raises(
        ValueError, match=r"VQVAE: image must be \[N, 1, H, W\], H and W multiples of 2: got \[1, 1, 7, 8\]"
    ):
        made()(torch.zeros(1, 1, 7, 8).double())
    with pytest.raises(ValueError, match="Codebook: codes and width must be at least 1: got 0 and 3"):
        Codebook(0, 3)
    with pytest.raises(ValueError, match="Codebook: decay must be from 0 to below 1: got 1.0"):
        Codebook(2, 3, decay=1.0)
    with pytest.raises(ValueError, match=r"Codebook: z must be \[N, 3, ...\]: got \[2, 4, 5\]"):
        codebook()(torch.zeros(2, 4, 5).double())
