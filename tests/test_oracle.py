"""Phase 3 against its definition, computed the slow way and sharing no code with the package: copy the head,
set every weight to zero but one filter's, send every image through, average the outputs by label."""
import numpy as np, pytest, torch
from torch import nn

from dlmech.batches import Batches
from dlmech.filter import fields, observe, Responses
from dlmech.probe import Heads


def oracle(layer_output, weight, images, labels, K, f):
    """Averaged fields (K, K) and per-image fields (N, K) of filter f: a linear layer with all but one filter
    silenced."""
    head = nn.Linear(weight[0].numel(), K, bias=False)
    silenced = torch.zeros_like(weight)
    silenced[:, f] = weight[:, f]
    head.weight.data = silenced.reshape(K, -1)
    with torch.no_grad():
        out = torch.cat([head(layer_output(x[None]).reshape(1, -1))
                         for x in images]).numpy().astype(np.float64)
    return np.stack([out[labels == i].mean(0) for i in range(K)]), out


def close(fast, slow): # 1e-5 relative to the size of the matrix: single elements may cancel
    assert np.abs(fast - slow).max() <= 1e-5 * np.abs(slow).max()


def random_net(seed):
    "A random small network of three layers with odd sizes, in float32, and the number of its labels."
    g = torch.Generator().manual_seed(seed)
    c1, c2, K = (int(torch.randint(lo, hi, (1,), generator=g)) for lo, hi in ((2, 6), (3, 9), (2, 8)))
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, c1, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(2),
                        nn.Conv2d(c1, c2, 2, stride=2), nn.BatchNorm2d(c2), nn.GELU(), nn.Flatten(),
                        nn.Linear(c2*9, 11), nn.Tanh(), nn.Linear(11, K))
    return net.eval(), ['0', '2', '5', '8'], K


@pytest.mark.parametrize('seed', range(5))
def test_fields_of_random_networks(seed):
    net, paths, K = random_net(seed)
    x, y = torch.randn(40, 3, 12, 12), torch.arange(40) % K
    shapes = {'0': net[0](x).shape[1:], '2': net[:3](x).shape[1:], '5': net[:6](x).shape[1:],
              '8': (net[:9](x).shape[1], 1, 1)}
    heads = Heads(shapes, K, seed)
    seen = observe(net, paths, list(zip(x.split(7), y.split(7))), K, heads)
    for p in paths:
        sums, responses = seen[p]
        M = fields(sums.means(), heads.weight(p)).numpy()
        for f in range(len(M)):
            slow, each = oracle(net[:int(p)+1], heads.weight(p), x, y.numpy(), K, f)
            close(M[f], slow)
            fires = (each != 0).any(1)
            assert responses.wins[f].sum() == fires.sum()
            # a winner is decided by differences in the last digits now and then
            mine = np.stack([np.bincount(each[fires & (y.numpy() == i)].argmax(1), minlength=K)
                             for i in range(K)])
            assert np.abs(responses.wins[f].numpy() - mine).sum() <= 2


def test_fields_of_a_trained_network(trained_digits):
    net, heads, data = trained_digits
    seen = observe(net, heads.paths, Batches(data.test, 64), 10, heads)
    images = torch.cat([x for x, _ in Batches(data.test, 100)])
    labels = torch.cat([y for _, y in Batches(data.test, 100)]).numpy()
    for n, p in enumerate(heads.paths, 1):
        M = fields(seen[p][0].means(), heads.weight(p)).numpy()
        for f in range(0, len(M), max(1, len(M)//4)):
            close(M[f], oracle(net.layers[:n], heads.weight(p), images, labels, 10, f)[0])


def test_images_that_drive_a_filter_are_found_by_their_number(trained_digits):
    net, heads, data = trained_digits
    p = heads.paths[-1]
    _, responses = observe(net, [p], Batches(data.test, 64), 10, heads)[p]
    images = torch.stack([data.test[i][0] for i in range(len(data.test))])
    maps = net.layers(images.permute(0, 3, 1, 2).float()/127.5 - 1).detach()  # in the set's own order
    each = torch.einsum('nchw,kchw->nck', maps, heads.weight(p))
    for f in range(maps.shape[1]):
        if responses.wins[f].sum() < 8: continue
        value, image = each[:, f].amax(1).topk(8)
        assert torch.allclose(responses.top_field[f], value, rtol=1e-4, atol=1e-6)
        assert len(set(responses.top_image[f].tolist()) & set(image.tolist())) >= 7


def test_the_sum_of_all_filters_fields_is_the_heads_output(trained_digits):
    net, heads, data = trained_digits
    p = heads.paths[2]
    sums, _ = observe(net, [p], Batches(data.test, 64), 10)[p]
    out = torch.cat([net.layers[:3](x).flatten(1) @ heads.weight(p).flatten(1).T for x,
                     _ in Batches(data.test, 100)]).detach()
    labels = torch.cat([y for _, y in Batches(data.test, 100)])
    mean = torch.stack([out[labels == i].double().mean(0) for i in range(10)])
    close(fields(sums.means(), heads.weight(p)).sum(0).numpy(), mean.numpy())


@pytest.mark.parametrize('low, high', [(-2, 2), (-2, 0), (0, 0)])
def test_winners_and_silence_where_many_fields_are_equal(low, high):
    """Whole numbers: ties, largest fields of exactly 0 beside negative ones, silent maps. A winner has a
    field that no other exceeds."""
    g = torch.Generator().manual_seed(high)
    weight = torch.randint(low, high+1, (6, 40, 2, 2), generator=g).float()
    maps = torch.randint(-1, 2, (30, 40, 2, 2), generator=g).float()
    maps[torch.rand(30, 40, generator=g) < .4] = 0
    each = torch.einsum('bchw,kchw->bck', maps, weight)  # whole numbers: exact in any order
    r = Responses(weight, top=4)
    for b in torch.arange(30).split(7): r.add(maps[b], b, b % 6)
    fires, best = (each != 0).any(2), each.amax(2)
    assert torch.equal(r.wins.sum((1, 2)), fires.sum(0))
    assert (low, high) != (-2, 0) or ((best == 0) & fires).any()
    for f in range(40):
        assert all(n <= (each[fires[:, f], f, k] == best[fires[:, f], f]).sum() for k,
                   n in enumerate(r.wins[f].sum(0).tolist()))
        expected = best[fires[:, f], f].sort(descending=True).values[:4]
        assert torch.equal(r.top_field[f, :len(expected)], expected)
        assert (r.top_image[f, len(expected):] == -1).all()
