"""Every family, in the order of the table."""

from __future__ import annotations

from tests.families import pictures, unets, videos
from tests.families.family import Family

GROUPS: dict[str, list[Family]] = {
    "UNets": unets.FAMILIES,
    "Transformers for pictures": pictures.FAMILIES,
    "Transformers for video and sound": videos.FAMILIES,
}
FAMILIES: dict[str, Family] = {family.name: family for families in GROUPS.values() for family in families}
