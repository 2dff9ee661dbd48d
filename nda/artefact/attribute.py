"""Score by blocks of images, on any engine: what takes long in a method is many tasks here."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nda import fanout
from nda.artefact import notebooks
from nda.checks import pick_device
from nda.errors import InputError, check_choice
from nda.evidence import tuning
from nda.evidence.records import record
from nda.methods import METHODS, Method
from nda.nonparametric.blocks import Blocks
from nda.nonparametric.config import NDAConfig
from nda.rivals.bench import Bench, Scored
from nda.rivals.blocks import Gradients
from nda.rivals.inner_products import Source
from nda.store import Store

GRADIENTS = ("gradients", "kernels")  # families whose scores are made of one source at some weights


def attribute(
    profile: str,
    key: str,
    which: str,
    *,
    block: int,
    overrides: Mapping[str, Any] | None = None,
    task: int | None = None,
    **where: Any,
) -> int:
    """Score the queries of a profile by one method and record it, as the notebooks do, by blocks of
    images.

    Args:
        profile: its name.
        key: of the method.
        which: "val" or "gen", the queries.
        block: images in a block.
        overrides: parameters that shall differ from the profile's.
        task: number of the only block to look at; the scores are made by a call without it.
        where: tasks run: `workers`, `engine` and `scheduler` of `nda.fanout.run`.

    Returns:
        How many blocks were looked at.

    Raises:
        InputError: for a method that is not scored by blocks.
    """
    check_choice("method", key, tuple(METHODS))
    method, given = METHODS[key], notebooks.parameters(profile, overrides)
    if method.family not in ("nda", *GRADIENTS):
        able = [name for name, m in METHODS.items() if m.family in ("nda", *GRADIENTS)]
        raise InputError(f"{key} is not scored by blocks; {', '.join(able)} are")
    method = method.varied(**given["variant"] if method.opens_model else {})
    check_choice("queries", which, method.which)
    store, results = Store.working(profile), Store.results(profile)
    work: Blocks | Gradients
    if method.family == "nda":
        work = blocks = _blocks(method, given, store, which, block)
        tasks: list[Any] = work.tasks()
        run = lambda *_, **__: Scored(*blocks.scores(**where))  # noqa: E731
        method = replace(method, takes="bench", run=run)
    else:
        work = Gradients(store.folder.absolute(), block, given["device"])
        tasks = work.tasks(_sources(method, given, store))
    chosen = fanout.one_of(tasks, task)
    ran = fanout.run(work.look, chosen, done=work.done, label=key, **where)
    if task is None:
        ask: dict[str, Any] = {"device": pick_device(given["device"]), "block": block}
        bench = Bench(store, given, choose=tuning.chooser(results), **ask)
        record(method.score(bench, which), store=store, results=results)
    return ran


def _blocks(
    method: Method, given: Mapping[str, Any], store: Store, which: str, size: int
) -> Blocks:
    config = NDAConfig.parse(method.settings(given))
    return Blocks(store.folder.absolute(), which, config, size, given["device"])


def _sources(method: Method, given: Mapping[str, Any], store: Store) -> list[Source]:
    """All that a method of gradients differentiates."""
    settings = method.settings(given)
    weights = settings.pop("weights", "model")
    settings.pop("normalise", None)
    source = Source.parse(**settings)
    names = Bench(store, given).checkpoints if weights == "checkpoints" else [weights]
    return [replace(source, weights=name) for name in names]
