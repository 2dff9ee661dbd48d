"""Who is held out, what is planted, and what is said."""

import pytest
import torch
from photographs import photographs
from test_attribution import bank

from nda.errors import InputError
from nda.evidence import verdicts
from nda.evidence.attribution import Attributor, How, Reading
from nda.evidence.verdicts import Null, Strangers, judge

PIXELS = photographs(9, 8)
NAMES = [f"{n}.png" for n in range(9)]
NULL = Null((0.0,) * 37 + (0.1, 0.2))


class Recorder(Attributor):
    """Owes every query to picture 0."""

    def __init__(self, pixels=PIXELS):
        self.bank, self.how, self.asked = bank(pixels), How(size=8), []

    def readings(self, queries, without):
        self.asked += list(zip(queries, without, strict=True))
        return [Reading((0,), (1.0,), (1.0,)) for _ in queries]


def test_set_aside_without_themselves_and_without_twins():
    twin = (PIXELS[[3]].int() + 1).clamp(0, 255).byte()
    made = bank(torch.cat([PIXELS, twin]))
    found = verdicts.set_aside(made, 20, flips=True)
    assert len(found.pixels) == 8 and found.near == 2
    for picture, (n,) in zip(found.pixels, found.without, strict=True):
        assert torch.equal(picture, made.pixels[n])
    few = verdicts.set_aside(made, 3, flips=True)
    assert torch.equal(few.pixels, found.pixels[:3])  # the first of one order


def test_held_out_images_are_refused_by_name():
    others = photographs(3, 8, "others")
    found = verdicts.held_out(bank(PIXELS), bank(others), NAMES + ["a", "b", "c"], 2)
    assert len(found.pixels) == 2 and found.without == ((), ())
    mirrored = bank(torch.stack([others[0], PIXELS[4].flip(-1), PIXELS[5]]))
    with pytest.raises(InputError, match=r"held-out image [abc] is in the folder.*1 more are"):
        verdicts.held_out(bank(PIXELS), mirrored, NAMES + ["a", "b", "c"], 2)


def test_parts_are_planted_in_others_which_are_then_left_out():
    attributor = Recorder()
    aside = verdicts.set_aside(attributor.bank, 3, flips=True)
    cases, whole = verdicts.power(attributor, aside, NULL, 9)
    assert [(one.case, one.planted, one.found, one.named) for one in cases] == [
        (case, 9, 9, 1) for case in [*verdicts.COPIES, *verdicts.PARTS]
    ]
    assert whole == 1.0 and len(attributor.asked) == 7 * 9
    parts = attributor.asked[5 * 9 :]
    sources = [n for n, _ in zip(attributor.bank.draw("planted"), range(9), strict=False)] * 2
    for source, (query, (host,)) in zip(sources, parts, strict=True):
        assert host != source
        same = (query == attributor.bank.pixels[host]).float().mean()
        assert 0.5 < same < 1  # the rest is the source's


def test_without_strangers_only_copies_are_planted():
    attributor = Recorder()
    nobody = Strangers(PIXELS[:0], (), 0)
    cases, _ = verdicts.power(attributor, nobody, NULL, 2)
    assert [one.case for one in cases] == [*verdicts.COPIES]


def test_of_twins_alone_nothing_is_planted():
    twins = torch.cat([PIXELS[:1], (PIXELS[:1].int() + 1).clamp(0, 255).byte()])
    assert verdicts.power(Recorder(twins), Strangers(PIXELS[:0], (), 0), NULL, 2) == ([], 1.0)


@pytest.mark.parametrize(
    ("shares", "same", "kind", "sentence"),
    [
        ((0.9, 0.0), None, "copy", "A copy of 4.png"),
        ((0.75, 0.3), None, "copy", "A copy of 4.png"),
        ((0.74, 0.0), None, "parts", "Parts from 4.png"),
        ((0.5, 0.3), None, "parts", "Parts from 4.png and 1.png"),
        ((0.5, 0.1), None, "parts", "Parts from 4.png"),
        ((0.5, 0.4, 0.3), None, "parts", "Parts from 4.png and 1.png and 0.png"),
        ((0.5, 0.4, 0.3, 0.3), None, "parts", "Parts from 4.png and 1.png and 2 more"),
        ((0.1, 0.0), None, "none", "No attributable source"),
        ((0.0, 0.0), None, "none", "No attributable source"),
        ((0.0, 0.0), "b.png", "copy", "A copy of b.png, byte for byte"),
    ],
)
def test_sentences(shares, same, kind, sentence):
    reading = Reading((4, 1, 0, 2)[: len(shares)], shares, shares)
    found = judge(reading, NULL, NAMES, 1.0, same)
    assert (found.kind, found.sentence, found.share) == (kind, sentence, shares[0])
    assert found.p == NULL.p(shares[0])


def test_too_few_to_say():
    reading = Reading((0,), (1.0,), (1.0,))
    found = judge(reading, Null((0.0,) * 18), NAMES, 1.0, None)
    assert found.kind == "none" and found.p == 1 / 19
    assert "18 held-out images are too few to say more" in found.sentence
    assert judge(reading, Null((0.0,) * 19), NAMES, 1.0, None).kind == "copy"
