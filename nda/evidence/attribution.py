"""What queries owe to the pictures of a bank: which pixels, and to whom. All of it is kept on disk,
so that nothing is computed twice.

Two things are computed. A *reading* is the statistic of a verdict: NDA at the lowest noise level
among the candidates that a coarse index names, the same way for suspects, held-out images and
planted copies. *Maps* are for people to look at: NDA at all noise levels, over the whole bank or,
above a size, over candidates.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from nda.data.bank import Bank, digest, floats
from nda.errors import InputError, check_draws, check_positive
from nda.evidence.calibration import rounded
from nda.methods import METHODS
from nda.nonparametric.config import NDAConfig
from nda.nonparametric.index import candidates
from nda.nonparametric.owed import LEAST, NOBODY, PART, fitting, nobody, shares, varied
from nda.nonparametric.partial import Partial, merge, partial_scores
from nda.nonparametric.patches import Posterior, Windows
from nda.nonparametric.provenance import entropies, heaviest
from nda.schedule import sigma
from nda.store import Store, digest_json

READING = (NOBODY, PART, LEAST)  # what a reading is, beside the choices of a user
BLOCK = 1000  # pictures whose posterior is kept together
SAMPLE = 64  # pictures that stand for all that are no candidates, or that a score is compared among
FEW = 5  # sources that are named at each pixel
NAMED = 256  # pictures of 32 px that the maps of one suspect may name


@dataclass(frozen=True)
class How:
    """All choices that results depend on.

    size: side of the pictures in pixels. flips: whether mirror images count as well. timesteps: of
    the maps, ascending; the first is that of the verdict. candidates: pictures that a reading is
    made among. exact_above: size of a bank above which maps, too, are made among candidates. top:
    sources that are kept of a reading.
    """

    size: int = 32
    flips: bool = True
    timesteps: tuple[int, ...] = (25, 100, 300)
    candidates: int = 256
    exact_above: int = 5000
    top: int = 20

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int):
            raise InputError(f"size must be an integer number of pixels, not {self.size!r}")
        if self.size < 8 or self.size % 4:
            raise InputError(
                f"size must be a multiple of 4 pixels of at least 8, not {self.size}; 32 is good"
            )
        check_draws(self.timesteps)
        if list(self.timesteps) != sorted(set(self.timesteps)):
            raise InputError(
                f"timesteps must be ascending, without repeats, not {[*self.timesteps]}"
            )
        for name in ("candidates", "exact_above", "top"):
            check_positive(name, getattr(self, name))

    def patch(self, timestep: int) -> int:
        """Side of the window: 5, 5 and 9 pixels of 32 at timesteps 25, 100 and 300, as the best
        ones grow with the noise. At the lowest noise a window of 3 pixels is too often like another
        one to tell whose it is.

        Args:
            timestep: one of `timesteps`.

        Returns:
            An odd number of pixels.
        """
        side = max(3, 2 * ((5 + 2 * (timestep // 150)) * self.size // 64) + 1)
        return min(side, self.size - 1)

    def config(self, timestep: int, *, flips: bool) -> NDAConfig:
        """NDA at one timestep, nothing cut to a top k.

        Args:
            timestep: one of `timesteps`.
            flips: whether the mass of a mirror image counts for its original.

        Returns:
            The configuration.
        """
        return NDAConfig.single({timestep: self.patch(timestep)}, top_k=None, flips=flips)


@dataclass(frozen=True)
class Reading:
    """What a query owes to single pictures, the largest share first: places in the bank, shares of
    the query's pixels and mean masses."""

    images: tuple[int, ...]
    shares: tuple[float, ...]
    masses: tuple[float, ...]

    @property
    def largest(self) -> float:
        """The statistic of the verdict."""
        return self.shares[0]


@dataclass(frozen=True)
class Map:
    """Who explains each pixel at one noise level. images: places in the bank of those that are
    named at each position, heaviest first; masses; source: the position in this picture, as it is
    in the bank, of the patch that weighs most; mirrored: whether that patch was compared mirrored;
    entropy: of all masses, in nats. outside: mean mass that is estimated to lie outside of the
    candidates, 0 if there was no need of any."""

    timestep: int
    patch: int
    images: Int[Tensor, "row col few"]
    masses: Float[Tensor, "row col few"]
    source: Int[Tensor, "row col few 2"]
    mirrored: Bool[Tensor, "row col few"]
    entropy: Float[Tensor, "row col"]
    outside: float


def readable(
    query: Float[Tensor, "chan row col"], posterior: Posterior, how: How
) -> Float[Tensor, "row col image"]:
    """The masses that a reading is made of: those that fit, at pixels with something in them.

    Args:
        query: pixels in [-1, 1].
        posterior: of this query alone, at the first timestep.
        how: all choices.

    Returns:
        Masses of the posterior's images, in float64.
    """
    masses = fitting(posterior, _nobody(how))[0].double().unflatten(0, (how.size, how.size))
    timestep = how.timesteps[0]
    return masses * varied(query, how.patch(timestep), sigma(timestep))[..., None]


def _nobody(how: How) -> float:
    return nobody(Windows(how.size, how.size, how.patch(how.timesteps[0])), 3)


class Attributor:
    """Readings, maps and scores of queries against one bank.

    Args:
        bank: the pictures.
        how: all choices.
        store: where results are kept; they are named by what they were computed from.
    """

    def __init__(self, bank: Bank, how: How, store: Store):
        self.bank, self.how, self.store = bank, how, store
        self.place = {number: n for n, number in enumerate(bank.numbers.tolist())}

    # ---- readings

    def readings(
        self,
        queries: UInt8[Tensor, "query chan row col"],
        without: Sequence[Sequence[int]] | None = None,
    ) -> list[Reading]:
        """The statistic of every query.

        Args:
            queries: in 256 levels, of the bank's size.
            without: for each query, places of pictures that are taken out of the bank for it.

        Returns:
            One reading per query; none depends on what else is asked.
        """
        without = [()] * len(queries) if without is None else without
        names = [self._name(query, banned) for query, banned in zip(queries, without, strict=True)]
        todo = [n for n, name in enumerate(names) if name not in self.store]
        if todo:
            asked, bank, banned = queries[todo], self.bank.pixels, [without[n] for n in todo]
            count, flips = self.how.candidates, self.how.flips
            found = candidates(asked, bank, count, flips=flips, without=banned)
            bar = tqdm(zip(todo, asked, found, strict=True), desc="readings", total=len(todo))
            for n, query, some in bar:
                self.store.save(names[n], self._read(query, some))
        return [self._reading(name) for name in names]

    def _name(self, query: Tensor, banned: Sequence[int]) -> str:
        made = asdict(self.how) | {"timesteps": self.how.timesteps[0], "exact_above": None}
        made |= {"reading": READING, "bank": self.bank.sha256}
        made |= {"without": [self.bank.digests[n] for n in banned]}
        return f"readings/{digest(query)[:16]}-{digest_json(made)[:16]}"

    def _reading(self, name: str) -> Reading:
        kept = self.store.load(name)
        images = tuple(self.place[number] for number in kept["images"].tolist())
        return Reading(images, tuple(kept["shares"].tolist()), tuple(kept["masses"].tolist()))

    def _read(self, query: Tensor, some: Int[Tensor, "candidate"]) -> dict[str, Tensor]:
        """The largest shares among the candidates."""
        (posterior,) = self._among(query, some).posteriors
        masses = readable(floats(query), posterior, self.how)
        mean = masses.mean((0, 1)).round(decimals=6)
        share = torch.tensor([*map(rounded, shares(masses).tolist())], dtype=torch.float64)
        order = mean.argsort(descending=True, stable=True)
        order = order[share[order].argsort(descending=True, stable=True)][: self.how.top]
        return {"images": posterior.images[order], "shares": share[order], "masses": mean[order]}

    def _among(self, query: Tensor, some: Int[Tensor, "candidate"]) -> Partial:
        """The posterior among the candidates, less of it that an earlier run has kept."""
        config = self.how.config(self.how.timesteps[0], flips=self.how.flips)
        made = {"config": asdict(config), "size": self.how.size}
        name = f"posteriors/{digest(query)[:16]}-{digest_json(made)[:16]}"
        numbers = self.bank.numbers[some]
        kept = None
        if name in self.store:
            kept = Partial.from_tensors(config, self.store.load(name))
            kept = kept.only(numbers, least=_nobody(self.how))
        parts = [] if kept is None else [kept]
        there = numbers[:0] if kept is None else kept.posteriors[0].images
        new = ~torch.isin(numbers, there)
        if new.any():
            block = self.bank.floats(some[new])
            images = numbers[new].tolist()
            parts.append(partial_scores(floats(query)[None], block, config, images=images))
        whole = merge(parts)
        if new.any():
            self.store.save(name, whole.tensors())
        return whole

    # ---- maps

    def maps(self, query: UInt8[Tensor, "chan row col"], first: Sequence[int]) -> list[Map]:
        """Who explains each pixel of a query, at every timestep.

        Args:
            query: in 256 levels.
            first: places of pictures that are named wherever they count; beside them are those with
                the largest masses.

        Returns:
            A map for each timestep.
        """
        some = torch.arange(len(self.bank))
        if len(self.bank) > self.how.exact_above:
            (some,) = candidates(
                query[None], self.bank.pixels, 2 * self.how.candidates, flips=self.how.flips
            )
        found = [self._masses(query, some, timestep) for timestep in self.how.timesteps]
        most = max(FEW, NAMED * 32**2 // self.how.size**2)
        totals = torch.stack([masses.sum((0, 1, 3)) for masses, *_ in found]).sum(0)
        place = {n: i for i, n in enumerate(some.tolist())}
        ahead = [place[n] for n in first if n in place]
        totals[ahead] += totals.sum() + 1
        named = totals.argsort(descending=True, stable=True)[:most].sort().values
        return [
            self._map(query, some, named, *one, timestep)
            for timestep, one in zip(self.how.timesteps, found, strict=True)
        ]

    def _masses(
        self, query: Tensor, some: Int[Tensor, "image"], timestep: int
    ) -> tuple[Float[Tensor, "row col image view"], Float[Tensor, "row col"]]:
        """Masses of pictures and their mirror images, and the mass of all that was not compared."""
        rest = torch.ones(len(self.bank), dtype=torch.bool)
        rest[some] = False
        blocks = self._blocks(some) if not rest.any() else [some]
        whole = merge([self._block(query, block, timestep) for block in blocks])
        (posterior,) = whole.posteriors
        views = 1 + self.how.flips
        share = posterior.log_share[0].unflatten(1, (-1, views))  # [position, image, view]
        side = (self.how.size, self.how.size)
        if not rest.any():
            masses = share.exp()
            return masses.unflatten(0, side), torch.zeros(side)
        drawn = [n for n in self.bank.draw("outside") if rest[n]][:SAMPLE]
        (other,) = self._block(query, torch.tensor(drawn), timestep).posteriors
        scale = torch.tensor(int(rest.sum()) / len(drawn)).log()
        outside = (other.log_total + scale)[0]
        total = torch.logaddexp(posterior.log_total[0], outside)
        masses = (share + (posterior.log_total[0] - total)[:, None, None].to(share)).exp()
        return masses.unflatten(0, side), (outside - total).exp().to(share).unflatten(0, side)

    def _block(self, query: Tensor, block: Int[Tensor, "image"], timestep: int) -> Partial:
        """The posterior of one block, in which a mirror image has a number of its own."""
        config = self.how.config(timestep, flips=False)
        numbers = self.bank.numbers[block]
        made = {"config": asdict(config), "size": self.how.size, "flips": self.how.flips}
        made |= {"images": numbers.tolist()}
        name = f"blocks/{digest(query)[:16]}-{digest_json(made)[:16]}"
        if name not in self.store:
            pixels, numbers = self.bank.floats(block), 2 * numbers
            if self.how.flips:
                pixels = torch.cat([pixels, pixels.flip(-1)])
                numbers = torch.cat([numbers, numbers + 1])
            part = partial_scores(floats(query)[None], pixels, config, images=numbers.tolist())
            self.store.save(name, part.tensors())
        return Partial.from_tensors(config, self.store.load(name))

    def _blocks(self, some: Int[Tensor, "image"]) -> list[Tensor]:
        """The bank in blocks, where those of earlier runs stay."""
        # what was added since is in blocks of its own
        left, found = set(self.bank.numbers[some].tolist()), []
        for name in sorted(n for n in self.store.names() if n.startswith("division/")):
            numbers = self.store.load(name).tolist()
            if left.issuperset(numbers):
                left.difference_update(numbers)
                found.append(torch.tensor([self.place[n] for n in numbers]))
        for block in torch.tensor(sorted(left), dtype=torch.long).split(BLOCK):
            if len(block):
                name = f"division/{digest_json(block.tolist())[:16]}"
                self.store.save(name, block, axes="image")
                found.append(torch.tensor([self.place[n] for n in block.tolist()]))
        return sorted(found, key=lambda block: int(block[0]))  # one order of the sums

    def _map(
        self,
        query: Tensor,
        some: Int[Tensor, "image"],
        named: Int[Tensor, "named"],
        masses: Float[Tensor, "row col image view"],
        outside: Float[Tensor, "row col"],
        timestep: int,
    ) -> Map:
        both = masses.sum(3)
        few = min(FEW, len(named))
        # those that are the same to rounding in the order of the bank
        ranks = both[..., named].round(decimals=4).argsort(stable=True, dim=2, descending=True)
        which = ranks[..., :few]
        mass = both[..., named].gather(2, which)
        views = masses[:, :, named].gather(
            2, which[..., None].expand(*which.shape, masses.shape[3])
        )
        mirrored = views.argmax(3) == 1
        pixels = self.bank.floats(some[named])
        (term,) = self.how.config(timestep, flips=False).terms()
        options = self.how.config(timestep, flips=False).options(floats(query)[None], term)
        options.pop("top_k")
        doubled = torch.stack([pixels, pixels.flip(-1)], 1).flatten(0, 1)
        number = (2 * which + mirrored).flatten(0, 1)
        source = heaviest(floats(query), doubled, number, **options).unflatten(0, which.shape[:2])
        row, col = source // self.how.size, source % self.how.size
        col = torch.where(mirrored, self.how.size - 1 - col, col)
        entropy = entropies(both) + _spread(outside, len(self.bank) - len(some))
        where = torch.stack([row, col], 3)
        patch, mean = self.how.patch(timestep), outside.mean().item()
        return Map(timestep, patch, some[named][which], mass, where, mirrored, entropy, mean)

    # ---- scores

    def scores(self, query: UInt8[Tensor, "chan row col"], images: Sequence[int]) -> list[float]:
        """RFI with its gate, among these pictures and some others of the bank, 64 together. Of the
        methods that see images alone it has the highest LDS on the benchmark.

        Args:
            query: in 256 levels.
            images: places of the pictures.

        Returns:
            A score for each; it ranks them for this query and has no unit.
        """
        others = [n for n in self.bank.draw("score") if n not in set(images)]
        among = sorted([*images, *others[: max(0, SAMPLE - len(images))]])
        method = METHODS["rfi_gated"]
        settings = method.settings({"noise_seed": 0, "flips": self.how.flips})
        made = {"settings": settings, "among": [self.bank.digests[n] for n in among]}
        name = f"scores/{digest(query)[:16]}-{digest_json(made)[:16]}"
        if name not in self.store:
            asked = floats(query)[None], self.bank.floats(among)
            self.store.save(name, method.function(*asked, **settings)[0], axes="image")
        kept = dict(zip(among, self.store.load(name).tolist(), strict=True))
        return [kept[n] for n in images]


def _spread(mass: Float[Tensor, "row col"], count: int) -> Float[Tensor, "row col"]:
    """Entropy of a mass that `count` pictures share equally."""
    if not count:
        return torch.zeros_like(mass)
    return -(mass * (mass / count).clamp_min(torch.finfo(mass.dtype).tiny).log())
