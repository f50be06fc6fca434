"""Stratified folds: of every label each fold holds the same number of studies, to within one where the labels allow it."""

import numpy as np
import pandas as pd

RESTARTS = 12
"""searches from different starts; the first that meets the bound ends it, which is nearly always the first or second"""


def assign_folds(table: pd.DataFrame, folds: int, fixed: pd.Series | None = None) -> pd.Series:
    """Fold (0 up to `folds`) of every study.

    table: indexed by id, one column a label with 0, 1 or null; null is balanced as a label of its own. fixed: id -> fold
    for studies that keep theirs. Sizes differ by one at most unless `fixed` forces more. The same table gives the same
    folds, in whatever order its rows come. Whole patterns of labels are distributed: the sum of squares over labels and
    folds is brought down by the best swap until none helps; its minimum is where every label is balanced to within one.
    """
    table = table.sort_index()
    fixed = pd.Series(dtype=int) if fixed is None else fixed.reindex(table.index).dropna().astype(int)
    columns = _columns(table)
    placed = np.array([columns[(table.index.isin(fixed.index[fixed == fold]))].sum(axis=0) for fold in range(folds)])
    free = table.index[~table.index.isin(fixed.index)]
    found = pd.Series(-1, index=table.index, dtype="int64", name="fold")
    found[fixed.index] = fixed
    if len(free) == 0:
        return found
    patterns, which = np.unique(columns[~table.index.isin(fixed.index)], axis=0, return_inverse=True)
    counts = _search(patterns, np.bincount(which), placed)
    for pattern, per_fold in enumerate(counts):
        members = free[which == pattern]
        order = np.random.default_rng(pattern).permutation(np.repeat(np.arange(folds), per_fold))
        found[members] = order  # shuffled: ids in a row often come from one hospital
    return found


def _columns(table: pd.DataFrame) -> np.ndarray:
    """(n, labels) int: one for every study (its size), then each label, then each label's nulls where it has any."""
    values = table.astype("Int8")
    parts = [np.ones(len(table), int)]
    for name in values.columns:
        parts.append(values[name].fillna(0).to_numpy(int))
        unknown = values[name].isna().to_numpy(int)
        if unknown.any():
            parts.append(unknown)
    return np.stack(parts, axis=1)


def _search(patterns: np.ndarray, members: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """patterns (p, l), members (p), placed (f, l) -> studies of each pattern in each fold (p, f)."""
    total = placed.sum(axis=0) + members @ patterns
    bound = _cost(np.stack([(total + fold) // len(placed) for fold in range(len(placed))]))
    best, best_cost = np.empty(0), np.inf
    for start in range(RESTARTS):
        counts = _descend(patterns, _spread(patterns, members, placed, np.random.default_rng(start)), placed)
        cost = _cost(placed + counts.T @ patterns)
        if cost < best_cost:
            best, best_cost = counts, cost
        if best_cost <= bound:
            break
    return best


def _cost(sums: np.ndarray) -> int:
    return int((sums.astype(np.int64) ** 2).sum())


def _spread(patterns: np.ndarray, members: np.ndarray, placed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every pattern evenly; what is left over one by one to the fold that needs it most, of those with the fewest studies."""
    folds = len(placed)
    counts = np.repeat((members // folds)[:, None], folds, axis=1)
    sums = placed + counts.T @ patterns
    left = rng.permutation(np.repeat(np.arange(len(patterns)), members % folds))
    if placed[:, 0].any():  # what is fixed may ask for other shares than even ones
        counts[:], sums, left = 0, placed.copy(), rng.permutation(np.repeat(np.arange(len(patterns)), members))
    rarity = patterns[left] @ (1 / np.maximum(1, placed.sum(axis=0) + members @ patterns))
    for pattern in left[np.argsort(-rarity, kind="stable")]:
        fold = min(range(folds), key=lambda fold: (sums[fold, 0], sums[fold] @ patterns[pattern], fold))
        counts[pattern, fold] += 1
        sums[fold] += patterns[pattern]
    return counts


def _descend(patterns: np.ndarray, counts: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Swap two studies of two folds, always the pair that helps most, until none does."""
    sums = placed + counts.T @ patterns
    # apart[p, q]: squared length of what changes when a study of pattern q replaces one of pattern p
    apart = (patterns**2).sum(axis=1)[:, None] + (patterns**2).sum(axis=1) - 2 * patterns @ patterns.T
    pairs = [(a, b) for a in range(len(placed)) for b in range(a + 1, len(placed))]
    while True:
        gain, swap = 0, None
        for a, b in pairs:
            pull = patterns @ (sums[a] - sums[b])
            change = 2 * (pull[None, :] - pull[:, None]) + 2 * apart
            change[counts[:, a] == 0, :] = 0
            change[:, counts[:, b] == 0] = 0
            p, q = np.unravel_index(change.argmin(), change.shape)
            if change[p, q] < gain:
                gain, swap = change[p, q], (p, q, a, b)
        if swap is None:
            return counts
        p, q, a, b = swap
        counts[p, a] -= 1
        counts[q, a] += 1
        counts[q, b] -= 1
        counts[p, b] += 1
        sums[a] += patterns[q] - patterns[p]
        sums[b] += patterns[p] - patterns[q]
