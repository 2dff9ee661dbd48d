"""Named randomness: same name, same draw; the global state is left alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nda import rng

NAMES = st.lists(st.integers() | st.text(), min_size=1, max_size=4).map(tuple)


def test_seeds_stay_what_they_are():
    """Results on disk depend on these; a change of the hash would silently change every one of
    them."""
    assert (rng.seed("subset", 17), rng.seed("noise", 0, 100)) == (
        5412807216322834021,
        5985795811404948755,
    )


@given(NAMES, NAMES)
def test_seed_is_a_function_of_the_names_alone(a, b):
    assert 0 <= rng.seed(*a) < 2**63
    assert (rng.seed(*a) == rng.seed(*b)) == (a == b)


def test_type_order_and_grouping_of_names_matter():
    seeds = {
        rng.seed("a", 1),
        rng.seed("a", "1"),
        rng.seed(1, "a"),
        rng.seed("a1"),
        rng.seed("a"),
        rng.seed("a", 1, 1),
    }
    assert len(seeds) == 6


@pytest.mark.parametrize("name", [True, 1.0, None, ("a",), torch.tensor(1)])
def test_other_names_are_refused(name):
    with pytest.raises(TypeError, match="names"):
        rng.seed("a", name)


def test_generator_repeats_and_leaves_the_global_state():
    before = torch.get_rng_state()
    a, b, c = (torch.rand(5, generator=rng.generator("x", i)) for i in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_sets_the_global_state_inside_and_restores_it_even_after_an_error():
    before = torch.get_rng_state()
    with rng.seeded("x"):
        inside = torch.rand(3)
    with pytest.raises(ZeroDivisionError), rng.seeded("x"):
        assert torch.equal(torch.rand(3), inside)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(inside, torch.rand(3, generator=rng.generator("x")))
