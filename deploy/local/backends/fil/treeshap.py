"""Exact TreeSHAP from tables, several times as fast as xgboost's own.

What a leaf adds to a row's Shapley values depends on nothing but which of the splits on the leaf's
path the row agrees with: 2**depth cases. They are worked out when the model loads; a row then costs
a look-up per leaf instead of a recursion. The values are those of S. Lundberg et al. (2020), "From
local explanations to global understanding with explainable AI for trees", where a feature that is
left out sends a row down both branches, by their shares of the training data; to keep them in
tables is J. Yang's (2021) "Fast TreeSHAP", version 2.
"""

import json
import math

import numpy as np

MAX_TABLE_BYTES = 128 * 1024 * 1024
"""Most memory for the tables: 500 full trees of depth 6 take 50 MB. They double with each level and
the leaves do, too; xgboost's recursion explains what needs more."""


def read_trees(path):
    """Return the trees of a model file (xgboost's JSON), or why tables cannot explain them."""
    with open(path, encoding="utf-8") as file:
        learner = json.load(file)["learner"]
    if learner["gradient_booster"]["name"] != "gbtree":
        return None, "its trees have weights of their own"
    trees = learner["gradient_booster"]["model"]["trees"]
    if any(any(tree["split_type"]) for tree in trees):
        return None, "it has splits by category"
    if any(min(tree["sum_hessian"]) <= 0 for tree in trees):
        return None, "it has branches without training data"
    leaves = sum(tree["left_children"].count(-1) for tree in trees)
    depth = max(map(_depth, trees), default=0)
    needed = leaves * depth * 2**depth * np.dtype(np.float32).itemsize
    if not depth or needed > MAX_TABLE_BYTES:
        return None, f"{leaves} leaves of depth {depth} need {needed:,} bytes"
    return trees, ""


def _depth(tree):
    depths = [0] * len(tree["left_children"])
    for node in range(1, len(depths)):  # xgboost numbers a parent before its children
        depths[node] = depths[tree["parents"][node]] + 1
    return max(depths)


class TreeShap:
    """Explains rows of one model.

    Args:
        trees: See `read_trees`.
        features: Columns of a row.
        bias: The score of no row in particular, in margin space.
    """

    def __init__(self, trees, features, bias):
        self._features, self._bias = features, bias
        self._read_nodes(trees)
        paths = [path for tree, start in zip(trees, self._starts) for path in _paths(tree, start)]
        depth = max(len(steps) for steps, _ in paths)
        leaves = len(paths)
        values = np.array([value for _, value in paths])
        # Steps [depth, leaves]; a path that is shorter ends with steps that every row agrees with.
        self._node = np.full((depth, leaves), self._always_left, dtype=np.intp)
        self._goes_right = np.zeros((depth, leaves), dtype=np.uint8)
        # A feature that a path splits several times is one player, at the first of these steps.
        player = np.tile(np.arange(depth)[:, None], (1, leaves))
        feature = np.full((depth, leaves), features)
        share = np.ones((depth, leaves), dtype=np.float32)
        for leaf, (steps, _) in enumerate(paths):
            first = {}
            for i, (node, right, kept) in enumerate(steps):
                self._node[i, leaf], self._goes_right[i, leaf] = node, right
                at = first.setdefault(self._feature[node], i)
                player[i, leaf], feature[at, leaf] = at, self._feature[node]
                share[at, leaf] *= kept
        table = _shapley_values(values, player, feature < features, share)
        self._table = np.ascontiguousarray(table.transpose(1, 2, 0)).reshape(-1, depth)
        self._row_of_leaf = np.arange(leaves) * 2**depth
        self._bits = (1 << np.arange(depth, dtype=np.uint8))[:, None]
        # The looked-up values [leaves, depth], ordered by feature, are summed in pieces.
        by_leaf = feature.T.ravel()
        self._by_feature = np.argsort(by_leaf, kind="stable")[: np.sum(by_leaf < features)]
        ordered = by_leaf[self._by_feature]
        self._pieces = np.flatnonzero(np.diff(ordered, prepend=-1))
        self._summed = ordered[self._pieces]

    def _read_nodes(self, trees):
        """Lay out the nodes of all trees one after the other, and one that sends all left."""
        sizes = [len(tree["left_children"]) for tree in trees]
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self._always_left = sum(sizes)
        join = np.concatenate
        self._feature = join([*(tree["split_indices"] for tree in trees), [0]]).astype(np.intp)
        conditions = [*(tree["split_conditions"] for tree in trees), [np.inf]]
        self._condition = join(conditions).astype(np.float32)
        self._default_left = join([*(tree["default_left"] for tree in trees), [1]]).astype(bool)

    def explain(self, rows):
        """Return the contributions of finite or missing (NaN) float32 rows, the bias last."""
        found = np.zeros((len(rows), self._features + 1), dtype=np.float32)
        found[:, -1] = self._bias
        for row, out in zip(rows, found):
            at_node = row.take(self._feature, mode="clip")
            left = at_node < self._condition
            if np.isnan(row).any():
                left |= np.isnan(at_node) & self._default_left
            left[-1] = True
            agrees = left.view(np.uint8).take(self._node, mode="clip") ^ self._goes_right
            case = np.bitwise_or.reduce(agrees * self._bits, axis=0)
            values = self._table.take(self._row_of_leaf + case, axis=0, mode="clip").ravel()
            ordered = values.take(self._by_feature, mode="clip")
            out[self._summed] = np.add.reduceat(ordered, self._pieces, dtype=np.float64)
        return found


def _paths(tree, start):
    """Return each leaf's path, (node, goes right, share of the node's data), and its value."""
    left, right, cover = tree["left_children"], tree["right_children"], tree["sum_hessian"]
    found, waiting = [], [(0, ())]
    while waiting:
        node, steps = waiting.pop()
        if left[node] == -1:
            found.append((steps, tree["split_conditions"][node]))
            continue
        for goes_right, child in enumerate((left[node], right[node])):
            step = (start + node, goes_right, cover[child] / cover[node])
            waiting.append((child, (*steps, step)))
    return found


def _shapley_values(values, player, plays, share):
    """Return the table [depth, leaves, 2**depth]: what a leaf gives each player in each case.

    Bit i of a case is set if the row agrees with step i. The game of a leaf of value v is worth
    v * (product of the shares of those who are left out) if the others agree, else 0. So player i
    gets v * (agrees_i - share_i) * sum over k of c_k * k! (d - 1 - k)! / d!, with d players and c_k
    the coefficients of the product over the others j of (share_j + agrees_j * y).
    """
    depth, leaves = player.shape
    bits = (np.arange(2**depth) >> np.arange(depth)[:, None]) & 1 == 1
    agrees = np.ones((depth, leaves, 2**depth), dtype=bool)
    for i in range(depth):
        for at in range(i + 1):
            agrees[at, player[i] == at] &= bits[i]
    agrees = np.where(plays[:, :, None], agrees, False).astype(np.float32)
    share = share[:, :, None]  # 1 where nobody plays: the factor is then 1, and adds nothing
    orders = np.array([_orders(d, depth) for d in range(depth + 1)], dtype=np.float32)
    orders = orders[plays.sum(axis=0)].T[:, :, None]
    table = np.zeros(agrees.shape, dtype=np.float32)
    for i in range(depth):
        coefficients = [np.ones(agrees.shape[1:], dtype=np.float32)]
        for j in range(depth):
            if j == i:
                continue
            grown = [c * share[j] for c in coefficients] + [0]
            for k, c in enumerate(coefficients):
                grown[k + 1] = grown[k + 1] + c * agrees[j]
            coefficients = grown
        weight = sum(c * order for c, order in zip(coefficients, orders))
        gained = values[:, None] * (agrees[i] - share[i]) * weight
        table[i] = np.where(plays[i][:, None], gained, 0)
    return table


def _orders(players, depth):
    """Return for k < depth the share of the orders in which given k come before a given player."""
    fits = [math.factorial(k) * math.factorial(players - 1 - k) for k in range(players)]
    return [fit / math.factorial(players) for fit in fits] + [0.0] * (depth - players)
