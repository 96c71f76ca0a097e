"""`fastcifar data convert`: a data set written to files of another form, and read back."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fastcifar.catalogue import DEFAULT_DATASET
from fastcifar.cli.arguments import parse
from fastcifar.cli.options import ImageOptions, Switch, describe_images
from fastcifar.errors import UserError
from fastcifar.escape import shown
from fastcifar.output import PARTIAL, user_path

_PROG = "fastcifar data convert"
_ENDINGS = {"npz": (".npz",), "hdf5": (".h5", ".hdf5")}
"""What the names of files must end in, by which --dataset knows them."""


@dataclass(frozen=True)
class Options(ImageOptions):
    """Write a data set to files of another form, which --dataset OUT reads: whole or not at all. Every byte is compared
    with what is read back before the files are in their place."""

    out: Annotated[Positional[str], arg(metavar="OUT", help_behavior_hint="")] = ""
    """The file to write, .npz or .h5; for tfrecord a folder: a record file for each split, and dataset.json."""
    to: Annotated[
        Literal["npz", "hdf5", "tfrecord"] | None, arg(metavar="npz|hdf5|tfrecord", help_behavior_hint="")
    ] = None
    """The form: arrays of numpy; HDF5, which need not fit into memory; TensorFlow's records of tf.train.Example, with
    the features image, bytes, and label."""
    force: Switch = False
    """Replace what is at OUT."""


def main(args: Sequence[str]) -> int:
    options = parse(args, Options(), _PROG)
    out, form = _checked(options)

    from fastcifar.data.write import convert

    dataset = options.whole()
    print(describe_images(dataset))
    begin = time.monotonic()
    size = convert(dataset, out, form)
    seconds = time.monotonic() - begin
    print(f"wrote {shown(out)}: {size:,} bytes in {seconds:.1f} s")
    print("read back: every byte of images, labels, classes, mean and std is the same")
    print(f"--dataset {shown(_word(out))} reads it")
    return 0


def _checked(options: Options) -> tuple[Path, str]:
    """Return where to write, and the form. Raises UserError for what can be refused before the data is read."""
    if not options.out or options.to is None:
        lack = "a file or folder to write" if options.to else "--to"
        name = DEFAULT_DATASET
        raise UserError(f"data convert needs {lack}, as in: {_PROG} --dataset {name} --to npz {name}.npz")
    out, form = user_path(options.out, "OUT"), options.to
    endings = _ENDINGS.get(form, ())
    if endings and not out.name.lower().endswith(endings):
        raise UserError(f"OUT is {out}; allowed: with --to {form} a name that ends in {' or '.join(endings)}")
    if os.path.lexists(out) and (out.is_dir() if endings else not out.is_dir()):
        raise UserError(
            f"OUT is {out}, a {'folder' if endings else 'file'}; allowed: a {'file' if endings else 'folder'}"
        )
    held = [path for path in out.iterdir() if not path.name.startswith(PARTIAL)] if out.is_dir() else []
    if not options.force and (held or (os.path.lexists(out) and not out.is_dir())):
        raise UserError(f"{out} exists; allowed: another name, or --force, which replaces it")
    if form == "hdf5" and importlib.util.find_spec("h5py") is None:
        raise UserError("--to hdf5 needs h5py, which is not installed; allowed: pip install 'fastcifar[hdf5]'")
    return out, form


def _word(out: Path) -> str:
    """Return the path as a word that is no data set's name."""
    return str(out) if os.sep in str(out) else os.path.join(".", out)
