# SPDX-License-Identifier: Apache-2.0
from tvm import relax

from tvm_dynprune.passes.channel_sets import (
    Concatenation,
    Intersection,
    Mask,
    Union,
    concatenation,
    granularity,
    intersection,
    is_whole,
    masks_of,
    of_width,
    slice_of,
    union,
    without,
)

ALL = None
A, B, C = (
    Mask(relax.Var(name, relax.TensorType((1, 16, 1, 1), "float32")), 16, group)
    for name, group in (("a", 8), ("b", 4), ("c", 1))
)


def test_union_is_all_if_a_part_is():
    assert union(A, ALL) is ALL
    assert union() is ALL
    assert union(A) == A == union(A, A)
    assert union(A, B) == union(B, A) == Union(frozenset([A, B]))
    assert union(union(A, B), C) == union(A, union(B, C))


def test_intersection_ignores_all():
    assert intersection(A, ALL) == A
    assert intersection(ALL, ALL) is ALL
    assert intersection() is ALL
    assert intersection(A, B) == intersection(B, A, B) == Intersection(frozenset([A, B]))
    assert intersection(intersection(A, B), C) == intersection(A, intersection(B, C))


def test_a_concatenation_falls_apart_where_it_was_put_together():
    whole = concatenation([(A, 16), (ALL, 4), (B, 16)])
    assert slice_of(whole, 0, 16) == A
    assert slice_of(whole, 16, 4) is ALL
    assert slice_of(whole, 20, 16) == B
    assert slice_of(whole, 0, 4) is ALL
    assert slice_of(whole, 4, 16) is ALL
    assert slice_of(A, 0, 16) is ALL
    assert concatenation([(ALL, 16), (ALL, 4)]) is ALL


def test_masks_of_a_set():
    assert masks_of(ALL) == set()
    parts = concatenation([(union(A, B), 16), (ALL, 4), (intersection(B, C), 16)])
    assert masks_of(parts) == {A.var, B.var, C.var}


def test_without_a_mask_the_set_only_grows():
    assert without(A, {A.var}) is ALL
    assert without(A, {B.var}) == A
    assert without(union(A, B), {A.var}) is ALL
    assert without(intersection(A, B), {A.var}) == B
    assert without(intersection(A, union(B, C)), {C.var}) == A
    parts = concatenation([(A, 16), (B, 16)])
    assert without(parts, {A.var}) == Concatenation(((ALL, 16), (B, 16)))
    assert without(parts, {A.var, B.var}) is ALL


def test_granularity_is_what_all_parts_share():
    assert granularity(A) == 8
    assert granularity(union(A, B)) == 4
    assert granularity(intersection(A, C)) == 1
    assert granularity(concatenation([(A, 16), (ALL, 4), (A, 16)])) == 4
    assert granularity(concatenation([(A, 16), (ALL, 32)])) == 8


def test_whole_sets_are_one_decision_for_all_channels():
    whole, other = (
        Mask(relax.Var(name, relax.TensorType((1, 16, 1, 1), "float32")), 16, 16) for name in "de"
    )
    assert is_whole(whole)
    assert is_whole(union(whole, other))
    assert is_whole(intersection(whole, union(whole, other)))
    for not_whole in (ALL, A, union(A, whole), concatenation([(whole, 16), (whole, 16)])):
        assert not is_whole(not_whole)
    wide = of_width(union(whole, other), 32)
    assert wide == union(Mask(whole.var, 32, 32), Mask(other.var, 32, 32))
