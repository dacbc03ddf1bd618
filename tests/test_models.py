"""The networks of `nn.models`: published sizes and work, torchvision's names, and a graph that computes the same."""

from collections import Counter
from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch

from lilnetx_mini import InputError, lnx
from lilnetx_mini import nn as lx
from lilnetx_mini.nn import models
from lilnetx_mini.nn.export import fold_norm, put
from lilnetx_mini.nn.trace import trace
from lilnetx_mini.runtime import interpret
from lilnetx_mini.simplify import layer_macs

# parameters and multiply-adds, as torchvision publishes them (ResNet-20: He et al. 2016, table 6); entries of the state
# dict with torchvision's names; and side of the image
PUBLISHED = {
    "cifar_resnet20": (0.27e6, 40.6e6, 116, 32),
    "resnet18": (11_689_512, 1.81e9, 122, 224),
    "resnet34": (21_797_672, 3.66e9, 218, 224),
    "resnet50": (25_557_032, 4.09e9, 320, 224),
    "mobilenet_v2": (3_504_872, 0.30e9, 314, 224),
    "mobilenet_v3_small": (2_542_856, 0.0565e9, 244, 224),
    "mobilenet_v3_large": (5_483_032, 0.217e9, 312, 224),
    "efficientnet_b0": (5_288_548, 0.386e9, 360, 224),
}
TRACED = ("resnet18", "resnet50", "mobilenet_v3_small", "efficientnet_b0")  # MobileNetV2 is traced below, when it is stored
# Names in torchvision's checkpoints, with shapes: one of every kind of layer.
NAMES = {
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.1.conv2.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer4.0.downsample.1.bias": (512,),
        "fc.bias": (1000,),
    },
    "resnet50": {
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer3.5.conv3.weight": (1024, 256, 1, 1),
        "layer4.2.bn3.weight": (2048,),
        "fc.weight": (1000, 2048),
    },
    "mobilenet_v2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.1.conv.2.bias": (16,),
        "features.2.conv.0.1.running_mean": (96,),
        "features.17.conv.2.weight": (320, 960, 1, 1),
        "features.18.1.weight": (1280,),
        "classifier.1.weight": (1000, 1280),
    },
    "mobilenet_v3_small": {
        "features.1.block.0.0.weight": (16, 1, 3, 3),
        "features.1.block.1.fc1.bias": (8,),
        "features.1.block.2.1.weight": (16,),
        "features.4.block.1.0.weight": (96, 1, 5, 5),
        "features.11.block.2.fc2.weight": (576, 144, 1, 1),
        "features.12.0.weight": (576, 96, 1, 1),
        "classifier.0.weight": (1024, 576),
        "classifier.3.weight": (1000, 1024),
    },
    "mobilenet_v3_large": {
        "features.1.block.1.0.weight": (16, 16, 1, 1),
        "features.6.block.2.fc1.weight": (32, 120, 1, 1),
        "features.8.block.1.0.weight": (200, 1, 3, 3),
        "features.16.1.running_var": (960,),
        "classifier.0.bias": (1280,),
    },
    "efficientnet_b0": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.0.block.0.0.weight": (32, 1, 3, 3),
        "features.1.0.block.1.fc1.weight": (8, 32, 1, 1),
        "features.2.1.block.0.0.weight": (144, 24, 1, 1),
        "features.5.2.block.1.0.weight": (672, 1, 5, 5),
        "features.6.3.block.3.1.running_mean": (192,),
        "features.7.0.block.2.fc2.weight": (1152, 48, 1, 1),
        "features.8.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
    },
}


@torch.no_grad()
def settle(model, side=64, channels=3):
    """Give norm layers weights of their own and the statistics of a random batch, so that signals neither grow nor fade."""
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.weight.uniform_(0.5, 1.5)
            m.bias.normal_(0, 0.3)
            m.momentum = None  # the plain average
    model.train()(torch.randn(4, channels, side, side))
    return model.eval()


def hollow(name):
    """The network without memory for its numbers."""
    with torch.device("meta"):
        return getattr(models, name)()


@cache
def built(name):
    torch.manual_seed(0)
    return settle(getattr(models, name)())


@cache
def traced(name):
    """The graph for images of 64 px, and its tensors."""
    model = built(name)
    tensors = {key: t.numpy() for key, t in model.state_dict().items()}
    for key, m in model.named_modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            tensors[f"{key}.scale"], tensors[f"{key}.shift"] = (x.astype(np.float32) for x in fold_norm(m))
    graph = trace(model, torch.zeros(2, 3, 64, 64), {key: n + 1 for n, key in enumerate(tensors)})
    return graph, list(tensors.values())


def assert_same(have, module, x):
    with torch.no_grad():
        want = module(x).numpy()
    assert np.abs(want[0] - want[1]).max() > 0.01 * np.abs(want).max()  # the image matters
    assert np.abs(have - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_number_of_parameters(name):
    count = sum(p.numel() for p in hollow(name).parameters())
    if name == "cifar_resnet20":  # published as rounded
        assert round(count / 1e6, 2) == 0.27
    else:
        assert count == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_do_the_published_work(name):
    _, published, _, side = PUBLISHED[name]
    model, work = hollow(name), []
    for m in model.modules():
        if isinstance(m, torch.nn.Conv2d | torch.nn.Linear):
            m.register_forward_hook(lambda m, x, y: work.append(m.weight[0].numel() * y.numel()))
    model.eval()(torch.empty(1, 3, side, side, device="meta"))
    assert sum(work) == pytest.approx(published, rel=0.01)
    if name in TRACED:
        graph, tensors = traced(name)
        assert layer_macs(replace(graph, input_shape=(3, side, side)), tensors) == work


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_have_the_names_and_shapes_of_torchvision(name):
    state = hollow(name).state_dict()
    assert {key: tuple(state[key].shape) for key in NAMES[name]} == NAMES[name]
    assert len(state) == PUBLISHED[name][2]


@pytest.mark.parametrize("name", TRACED)
def test_traced_graphs_compute_what_torch_computes(name):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert_same(interpret(*traced(name), x.numpy()), built(name), x)


def test_the_stride_of_a_bottleneck_is_in_its_3x3():
    strides = {n: m.stride for n, m in hollow("resnet50").layer2[0].named_children() if hasattr(m, "stride")}
    assert strides == {"conv1": (1, 1), "conv2": (2, 2), "conv3": (1, 1)}


# Activations as modules, gates, residual sums, and the constant of norm layers, counted in torchvision's tables.
@pytest.mark.parametrize(
    "name,hardswish,relu,relu6,gates,sums,eps",
    [
        ("mobilenet_v2", 0, 0, 35, 0, 10, 1e-5),
        ("mobilenet_v3_small", 19, 5, 0, 9, 6, 1e-3),
        ("mobilenet_v3_large", 21, 11, 0, 8, 10, 1e-3),
    ],
)
def test_mobilenets_have_the_activations_gates_and_sums_of_torchvision(name, hardswish, relu, relu6, gates, sums, eps):
    parts = list(hollow(name).modules())
    kinds = Counter(type(m) for m in parts)
    assert (kinds[torch.nn.Hardswish], kinds[torch.nn.ReLU], kinds[torch.nn.ReLU6]) == (hardswish, relu, relu6)
    assert (kinds[models.SqueezeExcite], sum(getattr(m, "residual", False) for m in parts)) == (gates, sums)
    assert {m.eps for m in parts if isinstance(m, torch.nn.BatchNorm2d)} == {eps}


# Table of the authors' checkpoints: millions of parameters, norm layers left out.
@pytest.mark.parametrize("width,published", [(0.35, 1.66), (0.5, 1.95), (0.75, 2.61), (1.3, 5.34), (1.4, 6.06)])
def test_the_width_of_mobilenet_v2_rounds_channels_as_its_authors_do(width, published):
    with torch.device("meta"):
        model = models.mobilenet_v2(width)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert round(sum(p.numel() for m in layers for p in m.parameters()) / 1e6, 2) == published


@pytest.mark.parametrize("make", [models.mobilenet_v3_small, models.efficientnet_b0])
def test_scaled_networks_have_multiples_of_eight_channels_and_run(make):
    model = make(classes=10, width=0.4).eval()
    norms = [m.num_features for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    whole = [m.num_features for m in make(classes=10).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(n % 8 == 0 and n <= w for n, w in zip(norms, whole, strict=True)) and 0.35 < sum(norms) / sum(whole) < 0.5
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    "make,sums",
    [
        (partial(models.ResNet, models.BasicBlock, (1, 1, 1, 1)), 4),  # half of ResNet-18, for speed
        (partial(models.mobilenet_v2, 0.35), 10),
        (models.mobilenet_v3_small, 6),
    ],
    ids=["resnet10", "mobilenet_v2", "mobilenet_v3_small"],
)
def test_compressed_networks_are_stored_with_a_graph_that_computes_the_same(make, sums, tmp_path):
    torch.manual_seed(0)
    compressor = lx.reparameterize(make(classes=10))
    for w in compressor.weights:
        w.latents.data[torch.rand(len(w.latents)) < 0.8] = 0  # as training would, and faster to code
    settle(compressor.model)
    x = torch.randn(2, 3, 64, 64)
    assert compressor.save(tmp_path / "m.lnx", x).note == ""
    file = lnx.read(tmp_path / "m.lnx")
    assert [node.op for node in file.graph.nodes].count("add") == sums
    assert_same(interpret(file.graph, file.tensors(), x.numpy()), put(file, make(classes=10).eval()), x)


# of He et al. (2016), table 6; multiply-adds as in Lin et al. (HRank, 2020), where they are the dense networks
SMALL = {
    "resnet32": (lambda: models.cifar_resnet(32), 0.46e6, 68.9e6, (3, 32, 32)),
    "resnet44": (lambda: models.cifar_resnet(44), 0.66e6, 97.2e6, (3, 32, 32)),
    "resnet56": (lambda: models.cifar_resnet(56), 0.85e6, 125.49e6, (3, 32, 32)),
    "resnet110": (lambda: models.cifar_resnet(110), 1.72e6, 252.89e6, (3, 32, 32)),
    "resnet20x4": (lambda: models.cifar_resnet20(4), 4.29e6, None, (3, 32, 32)),
    "vgg16": (models.cifar_vgg16, 14.99e6, 313.73e6, (3, 32, 32)),
    "lenet300": (models.lenet300, 266_610, 266_200, (1, 28, 28)),
    "lenet5": (models.lenet5, 431_080, None, (1, 28, 28)),
}


@pytest.mark.parametrize("name", SMALL)
def test_networks_for_small_images_have_the_published_size_and_work(name):
    make, parameters, work, shape = SMALL[name]
    with torch.device("meta"):
        model, done = make(), []
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.01)
    for m in model.modules():
        if isinstance(m, torch.nn.Conv2d | torch.nn.Linear):
            m.register_forward_hook(lambda m, x, y: done.append(m.weight[0].numel() * y.numel()))
    model.eval()(torch.empty(1, *shape, device="meta"))
    assert work is None or sum(done) == pytest.approx(work, rel=0.01)


@pytest.mark.parametrize("name", ["vgg16", "lenet300"])
def test_graphs_of_networks_for_small_images_compute_what_torch_computes(name):
    torch.manual_seed(0)
    make, _, _, shape = SMALL[name]
    model, x = settle(make(), shape[1], shape[0]), torch.rand(2, *shape)
    captured = lx.capture(model, x)
    assert_same(interpret(captured.graph, captured.tensors(), x.numpy()), model, x)


def test_shortcuts_are_taken_alone_now_and_then_in_training_only():
    block = hollow("efficientnet_b0").features[6][3]
    assert block.drop == pytest.approx(0.2 * 14 / 16) and hollow("efficientnet_b0").features[1][0].drop == 0
    torch.manual_seed(0)
    block = models.GatedResidual(4, 8, 4, 3, 1, torch.nn.SiLU, drop=0.5)
    x = torch.randn(400, 4, 4, 4)
    alone = (block.train()(x) == x).flatten(1).all(1)
    assert 150 < int(alone.sum()) < 250 and not (block.eval()(x) == x).flatten(1).all(1).any()


def test_depths_that_no_such_resnet_has_are_refused():
    for depth in (2, 18, 51):
        with pytest.raises(InputError, match="6 n"):
            models.cifar_resnet(depth)
