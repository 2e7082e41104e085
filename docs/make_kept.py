"""Draw docs/kept.png: which tokens of the demo film go on to the language model under the demo recipe.

python docs/make_kept.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from videoprune import Pipeline
from videoprune.demo import film_path
from videoprune.report.pictures import kept_strip, spread
from videoprune.video import Film

SHOWN = 24

pipe = Pipeline.load()
video = pipe.watch(film_path())
with Film(film_path(), pipe.recipe.frames) as film:
    images = np.concatenate([chunk.images for chunk in film])
wanted = spread(len(images), SHOWN)
out = Path(__file__).with_name("kept.png")
kept_strip(images[wanted], None, video.tokens, wanted).save(out, optimize=True)
print(out)
