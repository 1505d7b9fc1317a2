"`dlmech.measure` on any network: right, and the network given back as it came, after an exception too."
import pandas as pd, pytest, torch, torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dlmech
from dlmech.filter import fields, label_means
from dlmech.layers import find_layers
from dlmech.measurement import check_fields
from dlmech.run import DlmechError
from helpers import blobs, same_state, small_net, state


def in_mixed_modes(net):
    "Some modules in one mode, some in the other; a gradient; a frozen weight; a hook of the user's own."
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    net[5].register_forward_hook(lambda m, args, out: None)
    return net


@pytest.mark.parametrize('heads', ['exact', 'ridge'])
def test_the_network_is_given_back_as_it_came(heads):
    net = in_mixed_modes(small_net())
    before = state(net)
    dlmech.measure(net, blobs(80, 4), blobs(40, 4, 1), heads=heads)
    assert same_state(state(net), before)


def test_a_state_holds_all_that_a_measurement_could_change():
    before = state(in_mixed_modes(small_net()))
    for change in (lambda net: net.eval(), lambda net: net[0].weight.requires_grad_(True),
                   lambda net: net[2].register_forward_hook(lambda *a: None),
                   lambda net: net[4].weight.grad.zero_(), lambda net: net[1].running_mean.add_(1),
                   lambda net: net[7].bias.data.add_(1)):
        net = in_mixed_modes(small_net())
        assert same_state(state(net), before)
        change(net)
        assert not same_state(state(net), before)


class Broken(Dataset):
    "Its 31st image cannot be read."
    def __len__(self): return 40
    def __getitem__(self, i):
        if i == 30: raise OSError('torn')
        return torch.zeros(3, 16, 16), i % 4


@pytest.mark.parametrize('heads_on, fields_on', [(Broken(), blobs(40, 4)), (blobs(40, 4), Broken())])
def test_and_after_an_exception_too(heads_on, fields_on):
    net = in_mixed_modes(small_net())
    before = state(net)
    with pytest.raises(OSError, match='torn'): dlmech.measure(net, heads_on, fields_on, batch=10)
    assert same_state(state(net), before)


def test_layers_are_found_by_looking():
    assert find_layers(small_net(), torch.zeros(1, 3, 16, 16)) == ['3', '5']
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 2))
    assert find_layers(mlp, torch.zeros(1, 3, 2, 2)) == ['2', '3']
    alex = torchvision.models.alexnet(num_classes=3)
    assert find_layers(alex, torch.zeros(1, 3, 224, 224)) == ['features.2', 'features.5', 'features.7',
                                                              'features.9', 'features.12']


def test_tables_fields_and_cards():
    net, (x, y) = small_net(), blobs(60, 4, 1)
    m = dlmech.measure(net, blobs(120, 4), (x, y), layers=['0', '3', '5'], names=['a', 'b', 'c', 'd'])
    assert list(m.layers.name) == ['0', '3', '5']
    assert list(m.layers.layer) == [1, 2, 3]
    assert [len(layer) for layer in m] == [6, 6, 8]
    assert len(m['0'].filters) == 6
    assert len(m[3].filters) == 8
    assert m['5'].fields.shape == (8, 4, 4)
    assert torch.equal(m['5'].field(2), m['5'].fields[2])
    # layer 0 is overwritten by BatchNorm's in-place ReLU a little later; what is measured is its own output
    means = m['0'].store.means
    assert torch.allclose(label_means(net.eval(), ['0'], [(x, y)], 4)['0'], means, rtol=1e-5, atol=1e-6)
    out = net[0](x).detach()
    assert torch.allclose(means[2].float(), out[y == 2].mean(0), rtol=1e-4, atol=1e-5)
    assert m['5'].card(2).axes
    assert m.figure().axes
    assert m['5'].figure().axes
    assert '<img' in m._repr_html_()
    assert (m['5'].fields - fields(m['5'].store.means, m['5'].head)).abs().max() == 0


def test_a_layer_is_asked_for_by_its_number_in_the_network_or_its_path():
    m = dlmech.measure(small_net(), blobs(40, 4), blobs(40, 4, 1), layers=['5'])
    assert m.paths == ['3', '5']
    assert list(m.layers.layer) == [2] == [layer.number for layer in m]
    assert m[2] is m['5']
    assert m.number('5') == 2
    for layer, said in ((1, 'layer: 1 was not measured; measured are 2 \\(5\\)'),
                        ('3', 'was not measured'), (3, 'no layer 3')):
        with pytest.raises(DlmechError, match=said): m.number(layer)
        with pytest.raises(DlmechError, match=said): len(m[layer])
    with pytest.raises(DlmechError, match='has no filter 8; it may be 0 to 7'): m[2].card(8)


def test_a_folder_holds_the_same_measurement(tmp_path):
    x, y = blobs(40, 4, 1)
    m = dlmech.measure(small_net(), blobs(40, 4), (x, y), names=['a', 'b', 'c', 'd'], threshold=.4)
    with pytest.raises(DlmechError, match='is no finished run'): dlmech.open(tmp_path/'mine')
    again = dlmech.open(m.save(tmp_path/'mine'))
    pd.testing.assert_frame_equal(again.layers, m.layers, check_dtype=False)
    assert (again.names, again.paths, again.threshold, again.title) == (m.names, m.paths, .4, m.title)
    for one, other in zip(m, again):
        pd.testing.assert_frame_equal(one.filters, other.filters, check_dtype=False)
        assert torch.equal(one.fields, other.fields)
        assert torch.equal(one.field(3), other.field(3))
        assert torch.equal(one.head, other.head)
        assert all(torch.equal(one.top[k], other.top[k]) for k in ('field', 'image', 'output'))
    with pytest.raises(DlmechError, match='holds no net; give'): again.net.eval()
    with pytest.raises(DlmechError, match='holds a measurement already'): m.save(tmp_path/'mine')
    with_images = dlmech.open(tmp_path/'mine', images=(x, y))
    assert with_images[1].card(0).axes


def test_from_a_measurement_to_everything(tmp_path):
    "Of a network of one's own, in memory, saved and opened: the methods do what the functions do."
    net, train, test = small_net(), blobs(80, 4), blobs(40, 4, 1)
    m = dlmech.measure(net, train, test, layers=['5'], heads='ridge')
    with pytest.raises(DlmechError, match='lies in no folder; save it first'): m.report()
    pages = m.report(tmp_path/'pages')
    assert pages == tmp_path/'pages'/'index.html'
    e = m.explore()
    assert e.m is m
    opened = dlmech.open(m.save(tmp_path/'mine'), model=net, images=test)
    assert opened.report() == tmp_path/'mine'/'report'/'index.html'
    count = lambda folder: len(list(folder.rglob('*.html')))
    assert count(tmp_path/'mine'/'report') == count(tmp_path/'pages') > len(m['5'])
    again = opened.explore()
    e.controls['filter'].value = again.controls['filter'].value = 3
    e.flush()
    again.flush()
    assert again.screen.pictures['matrix'].value == e.screen.pictures['matrix'].value


def test_fields_of_images_to_score_on_are_refused(tmp_path):
    "Whoever chooses by fields asks `check_fields`; a saved measurement remembers its images."
    train, test, other = blobs(40, 4), blobs(40, 4, 1), blobs(40, 4, 2)
    by_train, by_test = (dlmech.measure(small_net(), train, images, layers=['5']) for images in (train, test))
    for m in (by_train, dlmech.open(by_train.save(tmp_path/'train'))):
        check_fields(m)
        check_fields(m, score_on=test)
        with pytest.raises(DlmechError, match='100% of the images that the fields come from are images to'):
            check_fields(m, score_on=train)
    for m in (by_test, dlmech.open(by_test.save(tmp_path/'test'))):
        with pytest.raises(DlmechError, match='images that the heads were not trained on'): check_fields(m)
        with pytest.raises(DlmechError, match='to score on'): check_fields(m, score_on=test)
        with pytest.raises(DlmechError, match='images that the heads were not trained on'):
            check_fields(m, train=other)


def test_a_twin_makes_no_training_set_of_test_images():
    x, y = blobs(100, 4)
    other = blobs(100, 4, 1)[0]
    fields = torch.cat([x[:1], other[1:]]), y       # one picture that is in the training set as well
    m = dlmech.measure(small_net(), (x, y), fields, layers=['5'])
    assert 0 < m.fields_on.shared(m.heads_on) <= .02
    with pytest.raises(DlmechError, match='images that the heads were not trained on'): check_fields(m)


def test_data_sets_in_any_form_give_the_same():
    net, (x, y) = small_net(), blobs(40, 4, 1)
    shuffled = DataLoader(TensorDataset(x, y), 50, shuffle=True)
    tables = [dlmech.measure(net, heads_on, fields_on, layers=['5'], seed=3)['5'].filters
              for heads_on, fields_on in (((x, y), (x, y)), (TensorDataset(x, y), shuffled))]
    assert tables[0].equals(tables[1])


UNEVEN = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Unflatten(1, (2, 14, 14, 1)), nn.Flatten(),
                       nn.Linear(392, 4), nn.Identity())


@pytest.mark.parametrize('change, said', [
    (dict(layers=['9']), "layer: there is no '9'; it may be 0, 1, 2"),
    (dict(heads='quick'), "heads: there is no 'quick'; it may be exact, paper, ridge"),
    (dict(heads='fast'), 'write heads=exact'),
    (dict(names=['a']), 'names: 1 names for 4 labels'),
    (dict(heads_on=7), 'a data set may be a torch Dataset'),
    (dict(fields_on=(torch.zeros(0, 3, 16, 16), torch.zeros(0, dtype=torch.long))), 'no images'),
    (dict(heads_on=blobs(40, 6)), 'labels from 0 to 5, but the network has 4 outputs'),
    (dict(fields_on=blobs(40, 3)), 'label 3 has no image'),
    (dict(layers=['2', '5'], model=UNEVEN), 'of shape'),
    (dict(model=nn.Conv2d(3, 2, 3)), 'it should answer with a'),
    (dict(device='gpu'), 'device: there is no'),
])
def test_bad_input_is_answered_with_one_sentence(change, said):
    given = dict(model=small_net(), heads_on=blobs(40, 4), fields_on=blobs(40, 4)) | change
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


class Varied(Dataset):
    "Images that are never twice the same."
    def __len__(self): return 40
    def __getitem__(self, i): return torch.randn(3, 16, 16) + i % 4, i % 4


def test_a_set_that_is_augmented_at_random_is_known_as_itself():
    data, other = Varied(), Varied()
    m = dlmech.measure(small_net(), data, data, layers=['5'])
    check_fields(m)
    assert m.fields_on == m.heads_on
    with pytest.raises(DlmechError, match='measure again'):
        check_fields(dlmech.measure(small_net(), data, other, layers=['5']))
