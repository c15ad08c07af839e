"""Data sets, runs and bundles in object stores."""

from penchant.storage.folders import (
    INDEX,
    add_files,
    adding_to,
    collect_files,
    digests,
    local_copy,
    publish,
    pull,
    read_bytes,
    remove,
    replacing,
    sizes,
    upload,
)
from penchant.storage.locations import (
    Location,
    absolute,
    default_cache_folder,
    is_remote,
    join,
    open_filesystem,
    open_location,
)
from penchant.storage.mirrors import MirroredFolder

__all__ = [
    "INDEX",
    "Location",
    "MirroredFolder",
    "absolute",
    "add_files",
    "adding_to",
    "collect_files",
    "default_cache_folder",
    "digests",
    "is_remote",
    "join",
    "local_copy",
    "open_filesystem",
    "open_location",
    "publish",
    "pull",
    "read_bytes",
    "remove",
    "replacing",
    "sizes",
    "upload",
]
