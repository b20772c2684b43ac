"""The ways to make synthetic pictures, by name; imports nothing heavy, for the command line."""

from collections.abc import Mapping
from typing import Literal

Method = Literal["gan", "cut-and-paste", "procedural", "classical"]
METHODS: Mapping[Method, str] = {
    "gan": "experimental: a network that has learnt from the real defects paints new ones on good pictures",
    "cut-and-paste": "real defects, mirrored and resized, on good pictures",
    "procedural": "drawn scratches and blobs, as strong as the real defects, on good pictures",
    "classical": "the real pictures mirrored, turned, scaled, brighter, blurred, noisy",
}
"""Name → what it does."""

QUICK: tuple[Method, ...] = ("cut-and-paste", "procedural", "classical")
"""Those that train no network."""

NEED_NO_PLACE: tuple[Method, ...] = ("procedural",)
"""Those that need neither a mask nor a box of a real defect."""

AUTO = "auto"
NONE = "none"

CHOICE = "synthesis.json"
"""In a training's folder: what was made for it, and why."""
