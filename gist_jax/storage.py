"""Workdirs in a bucket of Google Cloud Storage, named gs://BUCKET/FOLDER in place of a directory.

A bucket holds objects, which are written and replaced whole, but neither appended to nor renamed; its
folders are nothing but the beginnings of their names, so that none is made.
"""

import atexit
import functools
import importlib.util
import os
import pathlib
import shutil
import tempfile
from typing import Any, cast

from gist_jax.errors import UserError, shortened

Path = str | os.PathLike[str]

_SCHEME = "gs://"
_PACKAGES = ("gcsfs", "google.cloud.storage")  # the second is for Orbax


def is_bucket(path: Path) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(_SCHEME)


def as_path(path: Path) -> pathlib.Path:
    """The path object for a path of this machine, or of a bucket: an `epath.Path`.

    That has the methods of a `pathlib.Path` that are called of workdirs. It is none: what takes a
    name as well as a path calls this, because `pathlib.Path(path)` would make gs:// a directory "gs:".

    Raises:
      UserError: if a bucket cannot be reached, or the path is a URL of another kind.
    """
    text = os.fspath(path)
    if "://" not in text:
        return pathlib.Path(text)
    if not is_bucket(text):
        raise UserError(f"{text} is no directory, and no gs:// folder: mount the bucket")
    bucket, _, folder = text.removeprefix(_SCHEME).partition("/")
    folder = folder.strip("/")
    if not bucket or not folder:
        raise UserError(f"{text} names no folder of a bucket: write gs://BUCKET/FOLDER")
    return cast(pathlib.Path, _reach(bucket) / folder)


@functools.cache
def _reach(bucket: str) -> Any:
    """The path of a bucket that is there, and that we may look into.

    Raises:
      UserError: if it is not, or a package is missing.
    """
    try:
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    except ModuleNotFoundError as error:  # what a package is in is missing too
        missing = [str(error.name)]
    if missing:
        raise UserError(f"gs://{bucket} needs the package {missing[0]}: pip install 'gist_jax[gcs]'")
    # Else epath would go through TensorFlow where that is installed, another way with other credentials.
    os.environ.setdefault("EPATH_USE_TF", "false")
    import fsspec.config
    from etils import epath

    # A listing that is kept knows nothing of what TensorStore and other processes write.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    path = epath.Path(f"{_SCHEME}{bucket}")
    try:
        is_there = path.exists()
    except Exception as error:  # of many kinds: of credentials, permissions and the network
        raise UserError(f"cannot look into the bucket gs://{bucket}: {shortened(error)}") from None
    if not is_there:
        raise UserError(f"there is no bucket gs://{bucket}")
    return path


def absolute(path: pathlib.Path) -> pathlib.Path:
    """A path that holds wherever it is read."""
    return path if is_bucket(path) else path.resolve()


def fetch(folder: pathlib.Path) -> pathlib.Path:
    """A directory with the files of a folder, for libraries that know no buckets.

    It is the folder itself where that is on this machine, else a copy that is removed in the end.
    """
    if not is_bucket(folder):
        return folder
    copy = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def put(directory: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the files of a directory into a folder of a bucket, one after the other."""
    for file in sorted(directory.iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())


def read_all(files: list[pathlib.Path]) -> list[str]:
    """The texts of many objects of a bucket, read side by side."""
    import fsspec

    if not files:
        return []
    found = fsspec.filesystem("gcs").cat([os.fspath(file) for file in files])
    return [found[os.fspath(file).removeprefix(_SCHEME)].decode() for file in files]
