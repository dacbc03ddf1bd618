"""A smaller network from one with zero slices: channels that nothing reads leave, constant ones move into biases.

Everything rests on one trick. Let NaN mean "unknown", with 0 * unknown = 0 wherever the zero is sure, and run the network:

- on an input of NaN. Whatever comes out of a layer as a number is the same for every input: a constant.
- on ordinary numbers, with NaN in the channels that are to go. If the output has none, nothing reads these channels.

The first run tells `_fold` which columns of a weight can be zeroed, the second proves every removal beforehand.
torch-pruning finds the layers that must lose a channel together, and cuts; its word is not taken: after every cut the
outputs are compared with those of the network before, and a cut that changes them is undone.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import ExportError, InputError, MissingExtraError
from .attention import attentions
from .compressor import CONVOLUTIONS, TRANSPOSED, Compressor
from .export import NORMS, PROBES, TOLERANCE, _example, plain_copy

LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
# Products with a weight: where the activations are, which the weight follows, and the bias.
PRODUCTS = {"convolution": (0, 2), "mm": (0, None), "bmm": (0, None), "addmm": (1, 0)}

# Operations, in place too, and beginnings of names of such, that by themselves turn NaN into NaN wherever the result
# depends on it. Any other one makes its whole result unknown.
FAITHFUL = set(
    """
    convolution mm addmm bmm baddbmm add sub mul div neg abs exp log sqrt rsqrt reciprocal square pow maximum minimum clamp
    clamp_min clamp_max where relu hardtanh leaky_relu elu gelu silu mish softplus sigmoid tanh hardswish hardsigmoid
    _prelu_kernel log_sigmoid sum mean amax amin _softmax _log_softmax native_layer_norm native_group_norm constant_pad_nd
    cat stack view _unsafe_view reshape permute transpose t slice select expand unsqueeze squeeze split split_with_sizes
    unbind clone alias detach copy _to_copy roll flip repeat index_select index_fill zeros_like ones_like full_like
    new_zeros new_ones new_full
    """.split()
)
FAMILIES = tuple(
    "avg_pool max_pool _adaptive_avg_pool adaptive_max_pool upsample_ reflection_pad replication_pad".split()
)

# torch-pruning's kinds of nodes that lose a channel as this module expects it.
UNDERSTOOD = set("CONV DEPTHWISE_CONV LINEAR BN PRELU ELEMENTWISE RESHAPE EXPAND CONCAT SPLIT SLICE OUTPUT".split())


class _Unknown(TorchDispatchMode):
    """Arithmetic in which NaN is an unknown number. Raises where something that is no float depends on it.

    weights  storages whose zeros stay zeros whatever the input; None if the input is unknown throughout, for then every
             number is sure. Numbers are then also those of an input of any other size: where zeros are padded, only
             other zeros are known
    """

    def __init__(self, weights: set[int] | None) -> None:
        super().__init__()
        self.weights = weights

    def _sure(self, t) -> bool:
        return isinstance(t, Tensor) and (self.weights is None or t.untyped_storage().data_ptr() in self.weights)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, op = kwargs or {}, func.overloadpacket.__name__.removesuffix("_")
        if self.weights is None and _sees_border(op, args):
            args = (args[0].masked_fill(args[0] != 0, math.nan), *args[1:])
        floats = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
        if not any(t.isnan().any() for t in floats):
            return func(*args, **kwargs)
        if op in PRODUCTS and self._sure(args[PRODUCTS[op][0] + 1]):
            return _product(func, args, kwargs, *PRODUCTS[op])
        if op.startswith("_scaled_dot_product") and not any(t.isnan().any() for t in floats[3:]):
            return self._attended(func, args, kwargs)
        norm = "batch_norm" in op
        if norm and self._sure(args[1]):
            silent = (args[1] == 0).view(-1, *[1] * (args[0].ndim - 2))
            args = (args[0].masked_fill(silent, 0), *args[1:])
        zeros = [t == 0 for t in args if self._sure(t)] if op == "mul" else []
        out = func(*args, **kwargs)
        for zero in zeros:
            out.masked_fill_(zero, 0)
        for t in tree_leaves(out)[: 1 if "max_pool" in op else None]:  # without the indices of maxima
            if not isinstance(t, Tensor) or not t.is_floating_point():
                raise ArithmeticError(f"{op} makes something else than floats of unknown numbers")
            if not (norm or op in FAITHFUL or op.startswith(FAMILIES)):
                t.fill_(math.nan)
        return out


    def _attended(self, func, args: tuple, kwargs: dict) -> tuple:
        """Fused attention: a head is unknown if any of its queries, keys or values is."""
        out, *rest = func(*(t.nan_to_num(0.0) for t in args[:3]), *args[3:], **kwargs)
        for t in args[:3]:
            out = out.masked_fill(t.isnan().flatten(2).any(2)[..., None, None], math.nan)
        return (out, *rest)


def _sees_border(op: str, args: tuple) -> bool:
    """Does an operation see zeros around or between its input?"""
    if op == "convolution":
        return args[6] or any(args[4])
    if op == "constant_pad_nd":
        return any(args[1][: 2 * (args[0].ndim - 2)])
    return op.startswith("avg_pool") and len(args) > 3 and any(args[3])


def _product(func, args: tuple, kwargs: dict, at: int, bias: int | None) -> Tensor:
    """Unknown where a weight that is not zero meets an unknown; the operation itself counts how many do."""
    x, w = args[at : at + 2]
    known, count = list(args), list(args)
    known[at] = x.nan_to_num(0.0, math.inf, -math.inf)
    count[at : at + 2] = x.isnan().to(x), (w != 0).to(w)
    if bias is not None and args[bias] is not None:
        count[bias] = torch.zeros_like(args[bias])
    return func(*known, **kwargs).masked_fill(func(*count, **kwargs) > 0.5, math.nan)


class _Check:
    """Inputs (the example, and random batches of its shape or its integers in another order), and their first outputs."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        g = torch.Generator().manual_seed(0)
        orders = [torch.randperm(example.numel(), generator=g) for _ in range(PROBES)]
        random = [torch.randn(example.shape, generator=g).to(example) for _ in range(PROBES)]
        others = random if example.is_floating_point() else [example.flatten()[o].view_as(example) for o in orders]
        self.inputs = [example, *others]
        try:
            self.want = self._outputs(model)
        except Exception as e:  # whatever the user's forward raises
            first = str(e).strip().split("\n")[0]
            raise ExportError(
                f"the network does not take {tuple(example.shape)}: {type(e).__name__}: {first}"
            ) from None
        if not all(isinstance(t, Tensor) and t.is_floating_point() and t.isfinite().all() for t in self.want):
            raise InputError("the network's outputs are not all finite floats: there is nothing to compare with")

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> list[Tensor]:
        return [t for x in self.inputs for t in tree_leaves(model(x))]

    def difference(self, model: nn.Module) -> float:
        """Largest difference from the first outputs, relative to the largest output; infinite if it does not run."""
        try:
            have = self._outputs(model)
        except Exception:  # a wrong cut shows in any way
            return math.inf
        if [t.shape for t in have] != [t.shape for t in self.want]:
            return math.inf
        pairs = [(a.double(), b.double()) for a, b in zip(have, self.want, strict=True) if b.numel()]
        gaps = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs]
        return max((g if g == g else math.inf for g in gaps), default=0.0)


def _tied(model: nn.Module) -> set[int]:
    """Parameters that several modules share."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {p for p, n in uses.items() if n > 1}


# ---- constants


@torch.no_grad()
def _fold(model: nn.Module, example: Tensor) -> None:
    """Zero the columns of every layer's weight that read a constant, in place; what they gave goes into the bias."""
    reads: dict[nn.Module, list[Tensor]] = {}
    tied = _tied(model)
    layers = [m for m in model.modules() if isinstance(m, LAYERS) and id(m.weight) not in tied]
    hooks = [m.register_forward_pre_hook(lambda m, x: reads.setdefault(m, []).append(x[0].clone())) for m in layers]
    try:
        with _Unknown(None):
            model(torch.full_like(example, math.nan))
    except Exception:  # what the network makes of the unknown is no number, or its forward method minds
        return
    finally:
        for hook in hooks:
            hook.remove()
    for module, (x, *again) in reads.items():
        batched = isinstance(module, nn.Linear) or x.ndim == module.weight.ndim
        if batched and not again and getattr(module, "groups", 1) == 1:
            _absorb(module, _constants(module, x))


def _constants(module: nn.Module, x: Tensor) -> Tensor:
    """(C,) value of every input channel of a layer that is one number at all places, NaN for the others."""
    rows = x.reshape(-1, x.shape[-1]).T if isinstance(module, nn.Linear) else x.transpose(0, 1).flatten(1)
    value = rows[:, 0]
    constant = (rows - value[:, None]).abs().amax(1) <= 1e-6 * value.abs()
    return torch.where(constant, value, math.nan)


def _absorb(module: nn.Module, value: Tensor) -> None:
    """Zero the columns that read a constant: value (C,), NaN where a channel is none.

    Unpadded, a column that reads v adds v * sum(column) everywhere: a bias. Under zero padding it adds less at the border;
    but then all such columns together read what one of them can read alone, weighted.
    """
    known, weight = ~value.isnan(), module.weight.detach().double()
    value = value.nan_to_num(0.0).double()
    w = weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else weight  # (out, in, *kernel)
    if isinstance(module, TRANSPOSED):
        known &= value == 0
    elif getattr(module, "padding_mode", "") == "zeros" and any(module._reversed_padding_repeated_twice):
        keep = int(value.abs().argmax())
        if value[keep]:
            w[:, keep] = torch.tensordot(w, value / value[keep], ([1], [0]))
            known[keep] = False
    else:
        extra = w.flatten(2).sum(2) @ value if w.ndim > 2 else w @ value
        if extra.any():
            old = 0.0 if module.bias is None else module.bias.detach().double()
            module.bias = nn.Parameter((old + extra).to(module.weight))
    w[:, known] = 0
    module.weight.copy_(weight)


# ---- cuts


@torch.no_grad()
def unread(model: nn.Module, example: Tensor, channels: dict[nn.Module, list[int]]) -> bool:
    """Proof that a network's output does not depend on what these layers give in these channels; False if there is none."""
    hooks = []
    for module, given in channels.items():
        axis, at = -1 if isinstance(module, nn.Linear) else 1, torch.tensor(given, device=example.device)
        hooks.append(module.register_forward_hook(lambda m, x, y, a=axis, at=at: y.index_fill(a, at, math.nan)))
    try:
        with _Unknown({t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}):
            out = tree_leaves(model(example))
    except Exception:  # as in `_fold`
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return not any(t.isnan().any() for t in out)


class Cutter:
    """torch-pruning's graph of a network as it is now; after a cut, a new one is needed."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        try:
            import torch_pruning as tp
        except ImportError as e:
            raise MissingExtraError("torch_pruning", "shrink") from e
        self.model, self.example, self.pair = model, example, tp._helpers._HybridIndex
        self.names, self.tied = {m: n for n, m in model.named_modules()}, _tied(model)
        self.largest = max((n for p in model.parameters() for n in p.shape), default=0)
        try:
            with torch.enable_grad():
                self.graph = tp.DependencyGraph().build_dependency(model, example, lambda m, x: m(x), verbose=False)
        except Exception as e:  # its own, or of a forward method that minds gradients
            raise ExportError(f"torch-pruning cannot follow the network: {type(e).__name__}: {e}") from None
        self.layers = [m for m in self.graph.module2node if isinstance(m, LAYERS)]  # those near the output first
        self.pads = self._pads(tp.dependency.index_mapping._ConcatIndexMapping)

    def _pads(self, shift: type) -> dict:
        """Nodes that pad channels -> where those of their input begin and end.

        torch-pruning takes F.pad for an operation that moves no channel; from now on it shifts them, as a concatenation does.
        """
        found = {}
        for node in self.graph.module2node.values():
            if type(node.grad_fn).__name__ != "ConstantPadNdBackward0":
                continue
            shape = node.grad_fn._input_metadata[0].shape  # of the padded tensor, whose gradient the node takes
            left, right = (*node.grad_fn._saved_pad, *[0] * 2 * len(shape))[2 * len(shape) - 4 :][:2]
            if left or right:
                found[node] = span = (left, shape[1] - right)
                for other in node.inputs:
                    for dep in (d for d in node.dependencies if d.target is other):
                        dep.index_mapping[1] = shift(span, reverse=True)
                    for dep in (d for d in other.dependencies if d.target is node):
                        dep.index_mapping[1] = shift(span)
        return found

    def coupled(self, root: nn.Module, channels: Iterable[int]) -> dict:
        """All that goes if these output channels of a layer go: (node, how it is cut) -> pairs (channel there, in root).

        torch-pruning's own search is the same, but goes in circles where it misjudges an operation that moves channels.
        """
        found = defaultdict(set)
        start = self.graph.module2node[root], self.graph.get_pruner_of_module(root).prune_out_channels
        queue = [(*start, [self.pair(c, c) for c in channels])]
        while queue:
            node, cut, reached = queue.pop()
            new = [p for p in reached if p not in found[node, cut]]
            if any(p.root_idx is None or not 0 <= p.idx <= self.largest for p in new):
                raise ArithmeticError("torch-pruning has lost track of a channel")
            found[node, cut].update(new)
            for dep in node.dependencies if new else ():
                if dep.is_triggered_by(cut):
                    moved = new
                    for mapping in filter(None, dep.index_mapping):
                        moved = mapping(moved)
                    queue.append((dep.target, dep.handler, moved))
        return {key: pairs for key, pairs in found.items() if pairs}

    def gives(self, cut) -> bool:
        """Does a way of cutting take output channels (those of norm layers and depthwise convolutions are both)?"""
        return self.graph.is_out_channel_pruning_fn(cut)

    def _width(self, node, cut) -> float:
        width = (self.graph.get_out_channels if self.gives(cut) else self.graph.get_in_channels)(node)
        return math.inf if width is None else width

    def _understood(self, node) -> bool:
        """Does a node lose a channel as this module expects it?"""
        m = node.module
        if node.type.name not in UNDERSTOOD or any(id(p) in self.tied for p in m.parameters()):
            return False
        groups = getattr(m, "groups", 1)
        return groups == 1 or m.in_channels == m.out_channels == groups

    def fixed(self, node, pairs) -> set[int]:
        """Channels of the root that cannot go because of a node, whatever its weights are."""
        if not self._understood(node):
            return {r for _, r in pairs}
        begin, end = self.pads.get(node, (0, self.largest))
        return {r for i, r in pairs if not begin <= i < end}

    def _live(self, node, cut, pairs) -> set[int]:
        """Channels of the root that a node reads."""
        m = node.module
        if node in self.pads:
            return self.fixed(node, pairs)
        if node.type.name not in ("CONV", "LINEAR") or self.gives(cut):
            return set()
        w = m.weight if isinstance(m, TRANSPOSED) else m.weight.transpose(0, 1)
        read = w.flatten(1).any(1).tolist()
        return {r for i, r in pairs if read[i]}

    def removable(self, root: nn.Module) -> dict:
        """What goes with those output channels of a layer that nothing reads, as in `coupled`; {} if there are none."""
        width = self.graph.get_out_channels(root)
        coupled = self.coupled(root, range(width))
        if not all(self._understood(node) for node, _ in coupled):
            return {}
        dead = set(range(width)).difference(*(self._live(*key, pairs) for key, pairs in coupled.items()))
        while dead:
            group = self.coupled(root, dead)
            if all(len({i for i, _ in pairs}) < self._width(*key) for key, pairs in group.items()):
                return group
            dead.remove(max(dead))  # every layer keeps a channel
        return {}

    def all_removable(self, left: set[nn.Module]) -> dict:
        """What goes, all at once, with channels that layers could read and none does; without those of the layers `left`."""
        together, given = defaultdict(set), set()
        for root in self.layers:
            group = {}
            with contextlib.suppress(Exception):  # torch-pruning stumbles over its own indices
                group = {} if root in left | given else self.removable(root)
            if all(self.gives(cut) for node, cut in group if node.module in self.names):
                continue  # the network's outputs
            for (node, cut), pairs in group.items():
                together[node, cut] |= pairs
                given |= {node.module} if self.gives(cut) else set()
        return dict(together)

    def proves(self, group: dict) -> bool:
        """Does the output not depend on what the layers of a group give in the channels that are to go?"""
        given = {}
        for (node, cut), pairs in group.items():
            if isinstance(node.module, (*LAYERS, *NORMS)) and self.gives(cut):
                given[node.module] = [i for i, _ in pairs]
        return unread(self.model, self.example, given)

    def cut(self, group: dict) -> None:
        """Remove the channels of a group."""
        for (node, cut), pairs in group.items():
            if node.module in self.names:
                cut(node.module, sorted({i for i, _ in pairs}))


def _snapshot(model: nn.Module) -> list[tuple[nn.Module, dict]]:
    """What torch-pruning may replace: attributes, parameters and buffers of every module. It writes into no tensor."""
    tables = ("_parameters", "_buffers")
    return [(m, {**vars(m), **{name: dict(vars(m)[name]) for name in tables}}) for m in model.modules()]


def _restore(saved: list[tuple[nn.Module, dict]]) -> None:
    for module, attributes in saved:
        vars(module).clear()
        vars(module).update(attributes)


def _removed(model: nn.Module, cutter: Cutter, group: dict, check: _Check) -> float:
    """Remove the channels of a group; how far the outputs are then from the first, and if that is too far all are back."""
    saved = _snapshot(model)
    try:
        cutter.cut(group)
        difference = check.difference(model)
    except Exception:  # torch-pruning stumbles over its own indices
        difference = math.inf
    if difference > TOLERANCE:
        _restore(saved)
    return difference


def _fewer_heads(model: nn.Module, check: _Check) -> bool:
    """Remove the heads that nothing reads, of every attention; False if there were none. One stays."""
    changed = False
    for attention in attentions(model):
        gone = attention.unread()[: attention.count - 1]
        channels = attention.of(gone)
        if not gone or any(id(p) in _tied(model) for m in (*attention.inside, attention.out) for p in m.parameters()):
            continue
        if not unread(model, check.inputs[0], {m: channels for m in attention.inside}):
            continue
        saved = _snapshot(model)
        attention.cut(gone)
        if (difference := check.difference(model)) > TOLERANCE:
            _restore(saved)
            warnings.warn(f"{len(gone)} heads that nothing reads stay: without them the outputs differ by {difference:.1e}", stacklevel=3)
        else:
            changed = True
    return changed


def _sweep(model: nn.Module, check: _Check, left: set[nn.Module]) -> bool:
    """Remove what can be removed, all of it at once or else group by group from the output; False if that was nothing.

    left  layers to leave alone; those where a removal failed are added
    """
    cutter, changed = Cutter(model, check.inputs[0]), False
    together = cutter.all_removable(left)
    if together and cutter.proves(together):
        if _removed(model, cutter, together, check) <= TOLERANCE:
            return True
        cutter = Cutter(model, check.inputs[0])
    for root in cutter.layers:
        group = {}
        with contextlib.suppress(Exception):  # as above
            group = {} if root in left else cutter.removable(root)
        if not group or not cutter.proves(group):
            continue
        difference = _removed(model, cutter, group, check)
        if difference <= TOLERANCE:
            changed = True
        else:
            left |= {node.module for node, cut in group if cutter.gives(cut)}
            how = f"differs by {difference:.2g} of its output" if difference < math.inf else "does not run"
            what = f"{cutter.names[root]}: channels that nothing reads stay; without them the network {how}"
            warnings.warn(what, stacklevel=3)
        cutter = Cutter(model, check.inputs[0])
    return changed


def shrink(model: nn.Module | Compressor, example_input: Tensor) -> nn.Module:
    """A plain, smaller network with the same outputs: a copy in eval mode, without the channels that do no work.

    model          a module whose weights hold zero slices, as ``nn.load_into`` gives it, or a Compressor
    example_input  one batch, as the module takes it
    raises         MissingExtraError without torch-pruning; InputError for a parametrised module or outputs that are not
                   finite; ExportError if the module does not take the example, or torch-pruning cannot follow it

    Removed to a fixed point: channels whose readers' columns are all zero, and, if the input is floats, channels that are
    constant whatever it is. Constants go into the readers' biases. Where a zero-padded convolution reads constants, it
    needs less of them at the border, which no bias can say: all of its constants become one channel, and that one stays.

    Layers joined by additions, gates, concatenations or depthwise convolutions lose a channel together or not at all; each
    keeps at least one. A head of self-attention goes as a whole, see `lilnetx_mini.nn.attention`. Left alone: grouped convolutions
    that are not depthwise; layer, group and instance norm; other attention, embeddings and recurrent layers, bare parameters and
    tied weights, and what is joined with them; and channels that F.pad adds in a shortcut of option A, as the forward method fixes
    their number (those on either side of it that continue one another go together). A removal that changes the outputs on random
    inputs by more than 1e-4 is undone with a warning.
    """
    original = plain_copy(model) if isinstance(model, Compressor) else model
    if any(parametrize.is_parametrized(m) for m in original.modules()):
        raise InputError("the module is parametrised: give its compressor, or the plain network after nn.load_into")
    example, first = _example(example_input), next(original.parameters(), torch.empty(0))
    example = example.to(first) if example.is_floating_point() else example.to(first.device)
    small = copy.deepcopy(original).eval()
    check = _Check(small, example)
    trains = {name: p.requires_grad for name, p in small.named_parameters()}
    for p in small.parameters():
        p.requires_grad_(p.is_floating_point())  # torch-pruning follows the gradient
    if example.is_floating_point():
        folded = copy.deepcopy(small)
        _fold(folded, example)
        small = folded if check.difference(folded) <= TOLERANCE else small
    left: set[nn.Module] = {m for a in attentions(small) for m in a.inside}
    while _fewer_heads(small, check) or _sweep(small, check, left):
        pass
    for name, p in small.named_parameters():
        p.requires_grad_(trains.get(name, True))
    return small


def shrunk_summary(before: nn.Module, after: nn.Module) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Name -> (shape before, shape after) of every parameter that `shrink` made smaller or added; () if there was none."""
    old = {name: tuple(p.shape) for name, p in before.named_parameters()}
    new = {name: tuple(p.shape) for name, p in after.named_parameters()}
    return {name: (old.get(name, ()), shape) for name, shape in new.items() if old.get(name) != shape}
