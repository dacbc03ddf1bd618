"""The checkers of notebook 06 accept every right answer and refuse the usual wrong ones, with a reason."""

from __future__ import annotations

import itertools

import numpy as np
from verdicts import accepted, refused

from lilnetx_mini import prior
from lilnetx_mini.checks import blocks


def not_attempted(*_):
    raise NotImplementedError


# -- exercise 1 -------------------------------------------------------------------------------------------------------


def norms_masked(z, order):
    size = np.abs(z)
    if order == 1:
        return size.sum(1), np.sign(z)
    norm = np.sqrt((z**2).sum(1)) if order == 2 else size.max(1, initial=0)
    safe = np.where(norm == 0, 1, norm)[:, None]
    if order == 2:
        return norm, z / safe
    top = (size == norm[:, None]) & (size > 0)
    return norm, np.sign(z) * top / np.maximum(top.sum(1), 1)[:, None]


def norms_loop(z, order):
    norms, gradient = [], np.zeros_like(z)
    for s, row in enumerate(z):
        norms.append(np.linalg.norm(row, order))
        if norms[-1] > 0:
            if order == np.inf:  # the first of several largest: as good as any
                k = np.abs(row).argmax()
                gradient[s, k] = np.sign(row[k])
            else:
                gradient[s] = np.sign(row) if order == 1 else row / norms[-1]
    return np.array(norms), gradient


def norms_torch(z, order):
    import torch

    from lilnetx_mini.nn.prior import slice_norms

    t = torch.tensor(z, requires_grad=True)
    norms = slice_norms(t, order)
    norms.sum().backward()
    return norms.detach().numpy(), t.grad.numpy()


def norms_package(z, order):
    return [prior.slice_norms(z, order), prior.slice_norms_gradient(z, order)]


def with_norms(change):
    return lambda z, order: (change(z, order), norms_masked(z, order)[1])


def with_gradient(change, only=None):
    """A wrong gradient, for one order or for all."""

    def answer(z, order):
        norms, gradient = norms_masked(z, order)
        return norms, change(z, norms[:, None]) if only in (None, order) else gradient

    return answer


def norms_in_place(z, order):
    out = norms_masked(z, order)
    z[:] = 0
    return out


NORMS_WRONG = {
    "root forgotten": (with_norms(lambda z, p: (z**2).sum(1) if p == 2 else norms_masked(z, p)[0]), "take the root"),
    "signed sum": (with_norms(lambda z, p: z.sum(1) if p == 1 else norms_masked(z, p)[0]), "absolute"),
    "signed maximum": (with_norms(lambda z, p: z.max(1, initial=-9e9) if p == np.inf else norms_masked(z, p)[0]), "absolute"),
    "root mean square": (with_norms(lambda z, p: np.sqrt((z**2).mean(1)) if p == 2 else norms_masked(z, p)[0]), "mean square"),
    "divided by d": (with_norms(lambda z, p: norms_masked(z, p)[0] / z.shape[1]), "divided"),
    "all slices together": (with_norms(lambda z, p: np.full(len(z), np.linalg.norm(z)) if p == 2 else norms_masked(z, p)[0]), "together"),
    "one number": (with_norms(lambda z, p: norms_masked(z, p)[0].sum()), "shape"),
    "wrong axis": (lambda z, p: (np.abs(z).sum(0), np.sign(z)), "shape"),
    "small number under the root": (
        with_norms(lambda z, p: np.sqrt((z**2).sum(1) + 1e-8) if p == 2 else norms_masked(z, p)[0]), "small number"),
    "always order 2": (lambda z, p: norms_masked(z, 2), "order 2"),
    "orders 1 and inf swapped": (lambda z, p: norms_masked(z, {1: np.inf, np.inf: 1}.get(p, p)), "largest absolute"),
    "nan at zero": (with_gradient(lambda z, n: z / n, 2), "nan"),
    "small number below": (with_gradient(lambda z, n: z / (n + 1e-8), 2), "test for zero"),
    "gradient of the square": (with_gradient(lambda z, n: 2 * z, 2), "squared norm"),
    "not divided": (with_gradient(lambda z, n: z, 2), "not divided"),
    "divided twice": (with_gradient(lambda z, n: z / np.where(n == 0, 1, n) ** 2, 2), "not by its square"),
    "order 1 for order 2": (with_gradient(lambda z, n: np.sign(z), 2), "order 1"),
    "order inf pushes all": (with_gradient(lambda z, n: np.sign(z), np.inf), "only the largest"),
    "order inf without sign": (
        with_gradient(lambda z, n: ((np.abs(z) == n) & (n > 0)) / np.maximum((np.abs(z) == n).sum(1, keepdims=True), 1), np.inf),
        "should be"),
    "order inf, ties paid twice": (with_gradient(lambda z, n: np.sign(z) * (np.abs(z) == n), np.inf), "share"),
    "not zero at a zero slice": (with_gradient(lambda z, n: np.where(z >= 0, 1.0, -1.0), 1), "should be"),
    "no sign": (with_gradient(lambda z, n: np.abs(z) / np.where(n == 0, 1, n), 2), "sign is missing"),
    "only the norms": (lambda z, p: norms_masked(z, p)[0], "two arrays"),
    "argument spoilt": (norms_in_place, "argument z"),
    "no return": (lambda z, p: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}  # fmt: skip


test_right_norms_are_accepted = accepted(blocks.norm_and_gradient, [norms_masked, norms_loop, norms_torch, norms_package], times=3)
test_wrong_norms_are_refused_with_a_reason = refused(blocks.norm_and_gradient, NORMS_WRONG)


# -- exercise 2 -------------------------------------------------------------------------------------------------------


def lengths(z):
    return np.sqrt((z**2).sum(1, keepdims=True))


def step_by_factor(z, t):
    n = lengths(z)
    return z * np.maximum(0, 1 - t / np.where(n == 0, np.inf, n)) if t else z.copy()


def step_by_direction(z, t):
    n = lengths(z)
    return z / np.where(n == 0, 1, n) * np.maximum(n - t, 0)


def step_by_ball(z, t):
    """What is left after the nearest point of the ball of radius t has been taken away (Moreau)."""
    n = lengths(z)
    inside = z * np.minimum(1, t / np.where(n == 0, 1, n))
    return np.where(n <= t, 0, z - inside)


def step_in_place(z, t):
    z *= 0.5
    return z


def safe(z):
    n = lengths(z)
    return np.where(n == 0, 1, n)


PROXIMAL_WRONG = {
    "through zero": (lambda z, t: z * (1 - t / safe(z)), "through zero"),
    "entry by entry": (lambda z, t: np.sign(z) * np.maximum(np.abs(z) - t, 0), "order 1"),
    "kept as it is": (lambda z, t: z * (lengths(z) > t), "shorter too"),
    "the square's": (lambda z, t: z / (1 + 2 * t), "squared norm"),
    "half the square's": (lambda z, t: z / (1 + t), "half the squared norm"),
    "a share of itself": (lambda z, t: z * max(0.0, 1 - t), "share"),
    "what was taken": (lambda z, t: z - step_by_factor(z, t), "taken away"),
    "only the direction": (lambda z, t: z / safe(z) * (lengths(z) > t), "direction"),
    "all slices as one": (lambda z, t: z * max(0.0, 1 - t / max(np.linalg.norm(z), 1e-300)), "of its own"),
    "half the length": (lambda z, t: step_by_factor(z, t / 2), "half"),
    "twice the length": (lambda z, t: step_by_factor(z, 2 * t), "twice"),
    "nan at zero": (lambda z, t: z * np.maximum(1 - t / lengths(z), 0), "nan"),
    "norm squared below": (lambda z, t: z * np.maximum(0, 1 - t / safe(z) ** 2), "square of the norm"),
    "nearly zero": (lambda z, t: np.where(lengths(z) > t, step_by_factor(z, t), 1e-13 * np.sign(z)), "exactly"),
    "norms only": (lambda z, t: np.maximum(lengths(z) - t, 0)[:, 0], "shape"),
    "argument spoilt": (step_in_place, "argument z"),
    "no return": (lambda z, t: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_proximal_steps_are_accepted = accepted(blocks.proximal_step, [step_by_factor, step_by_direction, step_by_ball], times=3)
test_wrong_proximal_steps_are_refused_with_a_reason = refused(blocks.proximal_step, PROXIMAL_WRONG)


def test_no_place_of_a_fine_grid_is_better_than_the_proximal_step():
    axis = np.linspace(-2.5, 2.5, 251)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    rng = np.random.default_rng(0)
    for length in (0.0, 0.3, 1.0, 2.0):
        for z in (*rng.uniform(-2.4, 2.4, (20, 2)), np.zeros(2), np.array([0.6, 0.8])):
            best = blocks.objective(blocks._proximal(z[None], length), z[None], length)[0]
            tried = blocks.objective(grid, z[None], length)
            assert best <= tried.min() + 1e-12 and tried.min() < best + 1e-3


# -- exercise 3 -------------------------------------------------------------------------------------------------------


def kept_by_rounds(alive):
    keep = [np.ones(len(a), bool) for a in alive]
    ends = [np.ones(alive[0].shape[1], bool), *keep]
    while True:
        before = [k.copy() for k in ends]
        for k in range(1, len(alive)):
            written = (alive[k - 1] & ends[k - 1]).any(1)
            read = (alive[k] & ends[k + 1][:, None]).any(0)
            ends[k] &= written & read
        if all(np.array_equal(a, b) for a, b in zip(before, ends, strict=True)):
            return ends[1:-1]


def kept_by_products(alive):
    """A channel stays if paths lead to it from the input and from it to the output."""
    front, back = alive[0].sum(1), alive[-1].sum(0)
    fronts, backs = [front > 0], [back > 0]
    for a in alive[1:-1]:
        fronts.append(a @ fronts[-1])
    for a in alive[-2:0:-1]:
        backs.append(backs[-1] @ a)
    return [f & b for f, b in zip(fronts, backs[::-1], strict=True)] if len(alive) > 1 else []


def kept_by_cutting(alive):
    maps = [a.copy() for a in alive]
    count = -1
    while count != sum(m.sum() for m in maps):
        count = sum(m.sum() for m in maps)
        for a, b in itertools.pairwise(maps):
            b[:, ~a.any(1)] = False
            a[~b.any(0)] = False
    return tuple(a.any(1) & b.any(0) for a, b in itertools.pairwise(maps))


def pairs(alive):
    return list(itertools.pairwise(alive))


def front_only(alive):
    now, out = np.ones(alive[0].shape[1], bool), []
    for a in alive[:-1]:
        now = (a & now).any(1)
        out.append(now)
    return out


def two_rounds(alive):
    maps = [a.copy() for a in alive]
    for _ in range(2):
        keep = [a.any(1) & b.any(0) for a, b in pairs(maps)]
        for k, kept in enumerate(keep):
            maps[k] &= kept[:, None]
            maps[k + 1] &= kept
    return keep


def spoils(alive):
    out = kept_by_rounds(alive)
    for a in alive:
        a[:] = False
    return out


def shortens(alive):
    out = kept_by_rounds(alive)
    alive.pop()
    return out


CHANNELS_WRONG = {
    "one round": (lambda m: [a.any(1) & b.any(0) for a, b in pairs(m)], "one round"),
    "two rounds": (two_rounds, "can go"),
    "those that go": (lambda m: [~k for k in kept_by_rounds(m)], "those that stay"),
    "written or read": (lambda m: [a.any(1) | b.any(0) for a, b in pairs(m)], "written and read"),
    "only read": (lambda m: [b.any(0) for _, b in pairs(m)], "no slice writes"),
    "only written": (lambda m: [a.any(1) for a, _ in pairs(m)], "no slice reads"),
    "only from the front": (front_only, "back from the output"),
    "only from the back": (lambda m: front_only([a.T for a in m[::-1]])[::-1], "from the input on"),
    "every slice must be there": (lambda m: [a.all(1) & b.all(0) for a, b in pairs(m)], "must stay"),
    "axes swapped": (lambda m: [a.any(0) for a in m[:-1]], "channels"),
    "with the output": (lambda m: [*kept_by_rounds(m), np.ones(len(m[-1]), bool)], "a list of"),
    "numbers": (lambda m: [np.nonzero(k)[0] for k in kept_by_rounds(m)], "True or False"),
    "zeros and ones": (lambda m: [k.astype(int) for k in kept_by_rounds(m)], "True or False"),
    "nothing goes": (lambda m: [np.ones(len(a), bool) for a in m[:-1]], "can go"),
    "maps spoilt": (spoils, "argument"),
    "list spoilt": (shortens, "argument"),
    "no return": (lambda m: None, "return"),
    "not attempted": (not_attempted, "not attempted"),
}


test_right_channels_are_accepted = accepted(blocks.kept_channels, [kept_by_rounds, kept_by_products, kept_by_cutting], times=3)
test_wrong_channels_are_refused_with_a_reason = refused(blocks.kept_channels, CHANNELS_WRONG)
