"""Examples kept many to a file: tar shards, parquet and arrow tables, lines of JSON.

Every reader is indexed, 0 to N - 1, and reads a row when it is asked for it and not before: what a
mask leaves out is not decoded, and a row group or shard of which nothing is selected is not opened.
"""

from attent.tasks.data.shards.image_table import TableImages
from attent.tasks.data.shards.image_tar import TarImages, TarScenes
from attent.tasks.data.shards.lines import LineShards
from attent.tasks.data.shards.paths import shard_paths, shards_of_split
from attent.tasks.data.shards.source import ShardSource
from attent.tasks.data.shards.tables import TableShards
from attent.tasks.data.shards.tar import TarShards

__all__ = [
    "LineShards",
    "ShardSource",
    "TableImages",
    "TableShards",
    "TarImages",
    "TarScenes",
    "TarShards",
    "shard_paths",
    "shards_of_split",
]
