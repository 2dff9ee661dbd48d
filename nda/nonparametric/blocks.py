"""NDA scores by blocks of train images, each of them a task of its own: for more images than memory
holds, or than one machine wants to look at.

A block's masses are shares of the block. What makes them shares of all train images is one number
for each query, position and term. So there are two rounds. In the first every block is looked at;
in the second, with the totals of all blocks added up, every block is scored. No process ever holds
more than one block, a few totals, and the scores.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nda import fanout
from nda.checks import pick_device
from nda.errors import check_positive
from nda.nonparametric.config import NDAConfig
from nda.nonparametric.partial import Partial, merge_tree, partial_scores
from nda.store import Store, Value, digest_json, plain


@dataclass(frozen=True)
class Blocks:
    """NDA of a store's queries against its train images, `size` of them at a time.

    Attributes:
        folder: of the working store, with `train` and the queries. What blocks found is kept there
            under `parts/blocks/`, and may be deleted when all is done.
        which: name of the queries.
        config: all choices of the method.
        size: train images in a block. The scores depend on it to rounding.
        device: where blocks are looked at.
    """

    folder: Path
    which: str
    config: NDAConfig
    size: int
    device: str = "auto"

    def tasks(self) -> list[int]:
        """Every block, by the number of its first train image.

        Returns:
            In their order; the position in this list is the number of the task.
        """
        check_positive("block", self.size)
        return list(range(0, Store(self.folder).info("train")["shape"][0], self.size))

    def done(self, start: int) -> bool:
        """Whether a block has been looked at.

        Args:
            start: one of `tasks`.

        Returns:
            Whether there is nothing to do.
        """
        return self._there(f"total-{start}")  # written last

    def look(self, start: int) -> None:
        """The first round: write a block's masses and its total.

        Args:
            start: one of `tasks`.
        """
        self._kept(f"masses-{start}", lambda: self._masses(start).tensors())
        self._kept(f"total-{start}", lambda: self._part(f"masses-{start}").total().tensors())

    def score(self, start: int) -> None:
        """The second round: write a block's scores among all.

        Args:
            start: one of `tasks`.
        """
        part, every = self._part(f"masses-{start}"), self._part("total")
        self._kept(f"scores-{start}", part.within(every).scores, axes="query train")

    def scores(self, **where: Any) -> tuple[Float[Tensor, "query train"], float]:
        """The scores of all train images: both rounds, of what is missing.

        Args:
            where: where tasks run: `workers`, `engine` and `scheduler` of `nda.fanout.run`.

        Returns:
            Scores, as `nda.nonparametric.scores.nda_scores` gives them, to rounding; and the
            seconds that all tasks took, added up.
        """
        tasks = self.tasks()
        fanout.run(self.look, tasks, done=self.done, label="blocks", **where)
        totals = (self._part(f"total-{start}") for start in tasks)
        self._kept("total", lambda: merge_tree(totals).tensors())
        fanout.run(self.score, tasks, done=self._scored, label="scores of blocks", **where)
        store = Store(self.folder)
        names = [self._name(f"scores-{start}") for start in tasks]
        names += [self._name(f"masses-{start}") for start in tasks]
        every = [store.load(name) for name in names[: len(tasks)]]
        return torch.cat(every, 1), sum(store.info(name)["seconds"] for name in names)

    def _masses(self, start: int) -> Partial:
        place = pick_device(self.device)
        train, queries = (Store(self.folder).load(n).to(place) for n in ("train", self.which))
        block = train[start : start + self.size]
        images = range(start, start + len(block))
        return partial_scores(queries, block, self.config, images=images)

    def _scored(self, start: int) -> bool:
        return self._there(f"scores-{start}")

    def _there(self, part: str) -> bool:
        return Store(self.folder).matches(self._name(part), *self._made())

    def _kept(self, part: str, make: Callable[[], Value], axes: str = "") -> None:
        parameters, inputs = self._made()
        made: dict[str, Any] = {"parameters": parameters, "inputs": inputs}
        Store(self.folder).kept(self._name(part), make, axes=axes, **made)

    def _part(self, part: str) -> Partial:
        return Partial.from_tensors(self.config, Store(self.folder).load(self._name(part)))

    def _made(self) -> tuple[dict[str, Any], dict[str, str]]:
        parameters = {"config": asdict(self.config), "block": self.size}
        return parameters, Store(self.folder).sha256("train", self.which)

    def _name(self, part: str) -> str:
        digest = digest_json(plain(self._made()[0]))[:8]
        return f"parts/blocks/nda-{digest}-{self.which}/{part}"
