"""Score a method of one's own beside raw pixels, on digits and a truth that we make up."""

from tempfile import mkdtemp

from torch.nn.functional import avg_pool2d

from nda.data import images, subsets
from nda.evidence import lds, truth
from nda.methods import IMAGES, METHODS, Method
from nda.rivals.bench import Bench
from nda.rivals.pixels import pixel_scores
from nda.store import Store


def far_scores(queries, train, *, pool):
    """The cosine of images that are seen from afar."""
    return pixel_scores(avg_pool2d(queries, pool), avg_pool2d(train, pool), kind="cosine")


about = ("far", "Seen from afar", "#d4006a", "similarity", IMAGES)
METHODS["far"] = Method(*about, far_scores, fixed={"pool": 4})
store, digits = Store(mkdtemp()), images.load("mnist", split="test", size=16)
for kind, part in {"train": slice(0, 600, 10), "val": slice(5, 605, 20)}.items():
    store.save(kind, digits.pixels[part], axes="image chan row col")
masks = subsets.keep_masks(digits.labels[0:600:10], 32, family="report")
losses = -truth.group_effects(pixel_scores(store.load("val"), store.load("train")), masks)
for key in ("far", "pixel_cosine"):
    result = METHODS[key].score(Bench(store, {}), "val")
    found = 100 * lds.lds(truth.group_effects(result.scores, masks), losses).mean()
    print(f"{result.method.label}: LDS {found:.1f} %, settings {result.settings}")
