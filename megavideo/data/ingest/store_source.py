"""The inputs of a store, read one at a time: what a process keeps of them is their parts, and their captions."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath

from megavideo.config.schema.prepare import IngestRun
from megavideo.data.clips.captions import CaptionNote
from megavideo.data.clips.formats import is_media
from megavideo.data.clips.stored import StoredClips, stored_clips
from megavideo.data.ingest.examine import Recipe
from megavideo.data.ingest.find import CAPTIONS_NAME, Captions
from megavideo.data.ingest.listing import Listing, sidecar_names
from megavideo.data.ingest.part import UNREACHABLE, Part, read_part
from megavideo.data.ingest.report import DroppedClip
from megavideo.data.ingest.work import Job
from megavideo.data.storage.entry import Entry
from megavideo.data.storage.open import is_object_store, open_storage
from megavideo.data.storage.retry import RetryPolicy
from megavideo.errors import DataError, StoreUnreachable
from megavideo.observe.whole_file import replacing

SIDECARS_FOLDER = "sidecars"
_MOST_SIDECAR_BYTES = 1 << 20
_SIDECARS_AT_ONCE = 16
_LONGEST_STEM = 200
_JOBS = 8192  # at a time: some MB
_LISTING_NAME = "listing.sqlite"

_log = logging.getLogger(__name__)


class StoreSource:
    """The inputs below a prefix, or one single object.

    The listing is made anew by each process, in the folder for copies. `out` is where sidecar captions are kept, for
    the process that lists the clips.
    """

    def __init__(self, place: StoredClips, out: Path, only: str | None) -> None:
        self.root = place.uri
        self.place = place
        self._out = out
        self._only = only
        self._local = place.cache / "captions"  # stands for the store's root in `Captions`
        self.files = self._listed()

    def close(self) -> None:
        """Close the listing."""
        self.files.close()

    @property
    def identity(self) -> str:
        """The address."""
        return self.root

    def refused(self, captions: Captions) -> Iterator[DroppedClip]:
        """Objects whose names no folder could hold, that are too large, or media of a suffix that is not read."""
        return self.files.refused()

    @contextmanager
    def captions(self, own_file: str | None) -> Iterator[Captions]:
        """Those of `own_file`, local or in a store, else of the store's caption file and sidecars."""
        self._local.mkdir()
        copy = self._local / CAPTIONS_NAME
        told = {str(copy): own_file or f"{self.root}/{CAPTIONS_NAME}", str(self._local): self.root}
        self._place_captions(own_file, copy)
        try:
            with closing(Captions(self._local, None, self._beside)) as captions:
                yield captions
        except DataError as error:
            text = str(error)
            for path, name in told.items():
                text = text.replace(path, name)
            raise type(error)(text) from error

    def notes(self, notes: Iterable[CaptionNote]) -> tuple[CaptionNote, ...]:
        """With the addresses of files."""
        return tuple(replace(note, file=note.file.replace(str(self._local), self.root)) for note in notes)

    def prepare(self, out: Path, mine: Callable[[str], bool]) -> None:
        """Fetch the sidecar captions of inputs, those that are not there already."""
        wanted = (self.files.sidecar(file) for file in self.files if mine(file))
        missing = (entry for entry in wanted if entry is not None and not self._kept(entry).exists())
        with ThreadPoolExecutor(_SIDECARS_AT_ONCE) as pool:
            while block := list(islice(missing, _SIDECARS_AT_ONCE * 64)):
                for _ in pool.map(self._keep, block):
                    pass

    def part(self, out: Path, file: str, recipe: Recipe) -> Part | None:
        """By the version of the object when it was read, and when it was listed."""
        part = read_part(out, file)
        if part is None or part.recipe != recipe.key:
            return None
        same = part.fault == UNREACHABLE or part.identity.version == self.files.version(file)
        return part if same else None

    def batches(self, files: Iterable[str], out: Path, recipe: Recipe) -> Iterator[list[Job]]:
        """Some thousands at a time."""
        jobs = (Job(file, out, recipe, self.files.version(file) or "") for file in files)
        while batch := list(islice(jobs, _JOBS)):
            yield batch

    def look_again(self) -> None:
        """List the store again."""
        self.files.close()
        self.files = self._listed()

    def _listed(self) -> Listing:
        storage = self.place.storage
        entries: Iterable[Entry] = storage.entries()
        if self._only is not None:
            names = (self._only, *sidecar_names(self._only))
            entries = [entry for name in names if (entry := storage.entry(name)) is not None]
        listing = Listing(self.place.cache / _LISTING_NAME, entries, self.place.most_bytes)
        _log.info("ingest: %s lists %d inputs, and %d that are none", self.root, len(listing), listing.num_refused)
        if not len(listing):
            first = next((f" ({clip.file!r} {clip.reason})" for clip in listing.refused()), "")
            listing.close()
            raise DataError(f"{self.root}: holds no video or image{first}. Remedy: point src= at a prefix with clips")
        return listing

    def _place_captions(self, own_file: str | None, copy: Path) -> None:
        if own_file is None:
            if self.place.storage.exists(CAPTIONS_NAME):
                self.place.storage.download(CAPTIONS_NAME, copy)
        elif is_object_store(own_file):
            folder, _, name = own_file.rpartition("/")
            open_storage(folder, self.place.storage.retry).download(name, copy)
        else:
            Captions(self._local, own_file).close()  # raises where it is missing
            copy.symlink_to(Path(own_file).expanduser().absolute())

    def _beside(self, file: str) -> Path:
        """A path beside which the sidecar of an input lies; one of another task's share is fetched when asked for."""
        entry = self.files.sidecar(file)
        if entry is None:
            return self._local / file
        if not self._kept(entry).exists():
            self._keep(entry)
        return self._kept(entry).with_suffix(".clip")

    def _kept(self, entry: Entry) -> Path:
        """Where a sidecar is kept: by its name and version, so that another version is another file."""
        digest = hashlib.sha256(f"{entry.name}\0{entry.version}".encode()).hexdigest()[:32]
        name = PurePosixPath(entry.name)
        stem = name.stem if len(name.stem.encode()) < _LONGEST_STEM else "captions"  # a key may be longer than a file's
        return self._out / SIDECARS_FOLDER / digest[:2] / digest / f"{stem}{name.suffix}"

    def _keep(self, entry: Entry) -> None:
        path = self._kept(entry)
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                self.place.storage.fetch(entry.name, file, _MOST_SIDECAR_BYTES)
        except StoreUnreachable:
            raise
        except DataError as error:
            _log.warning("ingest: captions are not read: %s", error)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror}). Remedy: check out= and free space"
            ) from error


@contextmanager
def opened_store(cfg: IngestRun, out: Path) -> Iterator[StoreSource]:
    """The inputs at `cfg.src`, a prefix or an object; DataError where the store cannot be reached or holds none."""
    uri, only = "s3://" + cfg.src.removeprefix("s3://").rstrip("/"), None
    folder, _, name = uri.rpartition("/")
    if len(folder) > len("s3://") and is_media(Path(name)):
        storage = open_storage(folder, RetryPolicy(total_seconds=cfg.store.retry_seconds))
        uri, only = (folder, name) if storage.exists(name) else (uri, None)
    with stored_clips(uri, cfg.store) as place, closing(StoreSource(place, out, only)) as source:
        yield source
