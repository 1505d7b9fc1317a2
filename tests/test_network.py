"`dlmech.measure` on any network: right, and the network given back as it came, after an exception too."
import copy

import pytest, torch, torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dlmech
from dlmech.data import Batches
from dlmech.filter import fields, label_means
from dlmech.arch import find_layers
from dlmech.run import DlmechError, ParameterError


def blobs(n, K, seed=0):
    "K kinds of noisy 16 x 16 images, and their labels."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % K
    return torch.randn(n, 3, 16, 16,
                       generator=g) + torch.nn.functional.one_hot(y, 16).float()[:, None, :, None] * 3, y


def small(K=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                         nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8*25, K))


def state(net):
    "All that a measurement could have changed."
    return ([(n, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for n,
             m in net.named_modules()],
            [(n, p.device, p.requires_grad, p.stride(), p.detach().clone(),
              None if p.grad is None else p.grad.clone()) for n, p in net.named_parameters()],
            [(n, b.clone()) for n, b in net.named_buffers()])


def same(a, b):
    flat = lambda s: [v for part in s for row in part for v in row]
    return all(torch.equal(u, v) if isinstance(u, torch.Tensor) else u == v for u,
               v in zip(flat(a), flat(b), strict=True))


def in_mixed_modes(net):
    "Some modules in one mode, some in the other; a gradient; a frozen weight; a hook of the user's own."
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    net[5].register_forward_hook(lambda m, args, out: None)
    return net


@pytest.mark.parametrize('recipe', ['fast', 'ridge'])
def test_the_network_is_given_back_as_it_came(recipe):
    net = in_mixed_modes(small())
    before = state(net)
    dlmech.measure(net, blobs(80, 4), blobs(40, 4, 1), recipe=recipe)
    assert same(state(net), before)


class Broken(Dataset):
    "Its 31st image cannot be read."
    def __len__(self): return 40
    def __getitem__(self, i):
        if i == 30: raise OSError('torn')
        return torch.zeros(3, 16, 16), i % 4


@pytest.mark.parametrize('train, test', [(Broken(), blobs(40, 4)), (blobs(40, 4), Broken())])
def test_and_after_an_exception_too(train, test):
    net = in_mixed_modes(small())
    before = state(net)
    with pytest.raises(OSError, match='torn'): dlmech.measure(net, train, test, batch=10)
    assert same(state(net), before)


def test_layers_are_found_by_looking():
    assert find_layers(small(), torch.zeros(1, 3, 16, 16)) == ['3', '5']
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 2))
    assert find_layers(mlp, torch.zeros(1, 3, 2, 2)) == ['2', '3']
    alex = torchvision.models.alexnet(num_classes=3)
    assert find_layers(alex, torch.zeros(1, 3, 224, 224)) == ['features.2', 'features.5', 'features.7',
                                                              'features.9', 'features.12']


def test_tables_fields_and_cards():
    net, (x, y) = small(), blobs(60, 4, 1)
    m = dlmech.measure(net, blobs(120, 4), (x, y), layers=['0', '3', '5'], names=['a', 'b', 'c', 'd'])
    assert list(m.layers.name) == ['0', '3', '5']
    assert list(m.layers.layer) == [1, 2, 3]
    assert len(m.filters('0')) == 6
    assert len(m.filters(3)) == 8
    assert m.fields('5').shape == (8, 4, 4)
    # layer 0 is overwritten by BatchNorm's in-place ReLU a little later; what is measured is its own output
    assert torch.allclose(label_means(net.eval(), ['0'], [(x, y)], 4)['0'], m.part('0')[0], rtol=1e-5,
                          atol=1e-6)
    out = net[0](x).detach()
    assert torch.allclose(m.part('0')[0][2].float(), out[y == 2].mean(0), rtol=1e-4, atol=1e-5)
    assert m.card('5', 2).axes
    assert m.figure().axes
    assert m.distributions('5').axes
    assert '<img' in m._repr_html_()
    assert (m.fields('5') - fields(*m.part('5')[:2])).abs().max() == 0


def test_data_sets_in_any_form_give_the_same():
    net, (x, y) = small(), blobs(40, 4, 1)
    tables = [dlmech.measure(net, train, test, layers=['5'], seed=3).filters('5')
              for train, test in (((x, y), (x, y)), (TensorDataset(x, y),
                                                     DataLoader(TensorDataset(x, y), 50, shuffle=True)))]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize('change, said', [
    (dict(layers=['9']), "layer: there is no '9'; it may be 0, 1, 2"),
    (dict(recipe='quick'), "recipe: there is no 'quick'; it may be paper, fast, ridge"),
    (dict(names=['a']), 'names: 1 names for 4 labels'),
    (dict(train=7), 'a data set may be a torch Dataset'),
    (dict(test=(torch.zeros(0, 3, 16, 16), torch.zeros(0, dtype=torch.long))), 'no images'),
    (dict(train=blobs(40, 6)), 'labels from 0 to 5, but the network has 4 outputs'),
    (dict(test=blobs(40, 3)), 'label 3 has no image'),
    (dict(layers=['2', '6'], model=nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Unflatten(1, (2, 196)),
                                                 nn.Linear(196, 4), nn.Flatten(), nn.Linear(8, 4),
                                                 nn.Identity())), 'of shape'),
    (dict(model=nn.Conv2d(3, 2, 3)), 'it should answer with a'),
    (dict(device='gpu'), 'device: there is no'),
])
def test_bad_input_is_answered_with_one_sentence(change, said):
    given = dict(model=small(), train=blobs(40, 4), test=blobs(40, 4)) | change
    with pytest.raises(DlmechError) as e: dlmech.measure(**given)
    assert said in str(e.value)
    assert '\n' not in str(e.value)


def test_a_layer_that_takes_no_part_is_refused():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(768, 4), nn.Linear(3, 3)
        def forward(self, x): return self.used(x.flatten(1))
    with pytest.raises(DlmechError, match='idle takes no part'):
        dlmech.measure(Idle(), blobs(40, 4), blobs(40, 4), layers=['idle'])
