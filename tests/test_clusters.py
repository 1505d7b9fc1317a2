"Clusters, noise and SNR by brute force on random matrices, and the cases at the edge."
import itertools

import numpy as np, pytest, torch

from dlmech.filter import clip, fields, find_clusters, layer_sums, measure_layer, normalised, snr
from dlmech.run import DlmechError


def by_hand(B):
    """Clusters of one matrix as lists of labels: each seed grows by every later free label with which the
    sub-block stays all ones."""
    taken, found = set(), []
    for seed in range(len(B)):
        if seed in taken or not B[seed, seed]: continue
        members = [seed]
        for label in range(seed+1, len(B)):
            if label not in taken and B[label, label] and B[np.ix_(members+[label], members+[label])].all():
                members.append(label)
        taken |= set(members)
        found.append(members)
    return found


def count_by_hand(B):
    "Internal and external noise, element by element."
    found = by_hand(B)
    inside = {label for c in found for label in c}
    internal = external = 0
    for i, j in itertools.product(range(len(B)), repeat=2):
        if not B[i, j] or any(i in c and j in c for c in found): continue
        internal += j in inside
        external += j not in inside
    return internal, external


@pytest.mark.parametrize('K', range(2, 13))
def test_random_matrices(K):
    g = torch.Generator().manual_seed(K)
    M = torch.randn(60, K, K, generator=g, dtype=torch.float64)
    diagonal, level = (torch.rand(60, 1, 1, generator=g) for _ in range(2))
    M += torch.eye(K) * diagonal * 2 + level  # from sparse to nearly full
    M[0] = -M[0].abs()                        # negative
    M[1] = 0                                  # silent
    M[2] = 1                                  # all ones
    M[3] = torch.eye(K)
    clusters = find_clusters(normalised(M))
    for f in range(len(M)):
        top = M[f].max().item()
        B = (M[f].numpy() / top > .3) if top > 0 else np.zeros((K, K), bool)
        assert (clusters.clipped[f].numpy() == B).all()
        found = by_hand(B)
        numbers = range(int(clusters.cluster[f].max()) + 1)
        assert [(clusters.cluster[f] == c).nonzero()[:, 0].tolist() for c in numbers] == found
        assert clusters.sizes[f][clusters.sizes[f] > 0].tolist() == [len(c) for c in found]
        assert (clusters.internal[f].item(), clusters.external[f].item()) == count_by_hand(B)
        assert clusters.noise[f] == B.sum() - sum(len(c)**2 for c in found)
    for f in (0, 1): assert clusters.sizes[f].sum() == clusters.noise[f] == 0
    assert clusters.sizes[2].tolist() == [K] + [0]*(K-1)
    assert clusters.sizes[3].tolist() == [1]*K


@pytest.mark.parametrize('K', range(2, 13))
def test_snr_is_what_counting_gives(K):
    g = torch.Generator().manual_seed(100 + K)
    normal = normalised(torch.randn(25, K, K, generator=g, dtype=torch.float64) + torch.eye(K))
    clusters = find_clusters(normal)
    S, N, ratio = snr(*layer_sums(normal, clusters, torch.ones(25, dtype=bool))[:2], K)
    B = clusters.clipped.numpy()
    assert np.isclose(S, np.mean([B[:, i, i].sum() for i in range(K)]))
    assert np.isclose(N, np.mean([B[:, i, j].sum() for i in range(K) for j in range(K) if i != j]))
    sizes, n = clusters.sizes.numpy(), clusters.noise.numpy()
    assert np.isclose(ratio, (K-1) * sizes.sum(1).mean() / ((sizes*(sizes-1)).sum(1).mean() + n.mean()))


def test_a_value_at_the_threshold_does_not_count():
    M = torch.tensor([[[1., .3], [.3000001, .3]]], dtype=torch.float64)
    assert clip(normalised(M), .3).tolist() == [[[True, False], [True, False]]]


def test_nan_is_refused_and_its_filter_named():
    means, weight = torch.ones(3, 600, 1, 1), torch.ones(3, 600, 1, 1)
    weight[1, 417] = float('nan')
    with pytest.raises(DlmechError, match='filter 417'): fields(means, weight)


def test_nan_is_named_by_its_own_number_when_filters_come_in_chunks(monkeypatch):
    monkeypatch.setattr('dlmech.filter.CHUNK', 9*50)
    means, weight = torch.ones(3, 600, 1, 1), torch.ones(3, 600, 1, 1)
    means[2, 417] = float('inf')
    with pytest.raises(DlmechError, match='filter 417'): measure_layer(means, weight, torch.ones(600, 3))


def test_signal_without_noise_and_neither():
    assert snr(3., 0., 3) == (1., 0., float('inf'))
    assert np.isnan(snr(0., 0., 3)[2])
