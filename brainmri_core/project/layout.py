"""Where everything lies under the project root. No other module builds these paths."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from brainmri_core.config import PathsConfig
from brainmri_core.config.base import RUN_ID_PATTERN
from brainmri_core.config.files import ROOT_VARIABLE
from brainmri_core.errors import ConfigError
from brainmri_core.system.storage import write_bytes
from brainmri_core.system.store import Store, open_store
from brainmri_core.system.store_url import checked_url, is_url

ARCHIVES_VARIABLE = "BRAINMRI_ARCHIVES"
RESUME_FOLDER, FOLDS_FOLDER, CHAMPION_FILE = "resume", "folds", "champion.pth"
ENSEMBLE_FOLDER = "ensemble"
URL_FILE = ".project-url"
"""File in the cache folder of a project in an object store that holds the project's URL."""
_OUTPUTS = "outputs"
_PLAIN = tuple(
    f"{_OUTPUTS}/{name}" for name in ("pointers/", "orchestrator/", "test_ledger/", ".patient_key")
)
RESERVED_NAMES = {RESUME_FOLDER, FOLDS_FOLDER, CHAMPION_FILE}


def resolve_root(configured: str | None = None) -> Path:
    """Return the project root: the configured value, else ``BRAINMRI_HOME``, else the current folder.

    Parameters
    ----------
    configured : str or None
        ``paths.root`` of the configuration.

    Returns
    -------
    pathlib.Path
        Absolute path; it need not exist yet.
    """
    return Path(configured or os.environ.get(ROOT_VARIABLE) or ".").expanduser().resolve()


def checked_run_id(run_id: str) -> str:
    """Return a run id that can name a folder.

    Raises
    ------
    ConfigError
        If it holds anything but letters, digits, dots, dashes and underscores, is too long, or is a reserved name.
    """
    if run_id in RESERVED_NAMES:
        raise ConfigError(
            f"The run id {run_id!r} is a name that the project uses itself; choose another one."
        )
    if not re.fullmatch(RUN_ID_PATTERN, run_id) or run_id.endswith("\n"):
        raise ConfigError(
            f"The run id {run_id!r} cannot name a folder; use up to 100 letters, digits, dots, dashes and underscores."
        )
    return run_id


class Layout(BaseModel):
    """Path layout of one project root.

    Every method returns an absolute path; `relative` turns it into what pointers and manifests store.

    Attributes
    ----------
    root : pathlib.Path
        The project's folder; for a project in an object store, its cache folder on this machine.
    url : str or None
        URL of a project in an object store; None for one in a folder.
    cache_bytes : int or None
        Most bytes that the cache folder may hold; what is in use may exceed it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    url: str | None = None
    cache_bytes: int | None = None

    @classmethod
    def at(
        cls, configured: str | None = None, cache: str | None = None, cache_gib: float | None = None
    ) -> Layout:
        """Return the layout of a project: in the folder that `resolve_root` finds, or at a URL.

        Parameters
        ----------
        configured, cache, cache_gib : str, str and float, or None
            ``paths.root``, ``paths.cache`` and ``paths.cache_gib`` of the configuration.

        Raises
        ------
        ConfigError
            If the URL is not one of a supported object store.
        """
        named = configured or os.environ.get(ROOT_VARIABLE)
        if named is None or not is_url(named):
            return cls(root=resolve_root(configured))
        url = checked_url(named)
        base = Path(cache).expanduser() if cache else Path("~/.cache/brainmri").expanduser()
        layout = cls(
            root=base.resolve() / hashlib.sha256(url.encode()).hexdigest()[:16],
            url=url,
            cache_bytes=None if cache_gib is None else int(cache_gib * 2**30),
        )
        if not (layout.root / URL_FILE).is_file():
            write_bytes(layout.root / URL_FILE, url.encode())
        return layout

    @classmethod
    def of(cls, paths: PathsConfig) -> Layout:
        """Return the layout of the project that a configuration names, as `at` does."""
        return cls.at(paths.root, paths.cache, paths.cache_gib)

    @property
    def store(self) -> Store:
        """The store that the project's files are kept in."""
        return open_store(self.root, self.url, _PLAIN, self.cache_bytes)

    @property
    def where(self) -> str:
        """The project's URL or folder, for messages."""
        return self.url or str(self.root)

    def require_folder(self, what: str) -> None:
        """Refuse a project in an object store, for work that needs one in a folder.

        Raises
        ------
        ConfigError
            If the project is in an object store.
        """
        if self.url:
            raise ConfigError(
                f"{what} needs a project in a folder, and this one is {self.url}; set paths.root to a folder for that."
            )

    def relative(self, path: Path) -> str:
        """Return `path` relative to the root, as POSIX text.

        Raises
        ------
        ConfigError
            If `path` lies outside the root, so that a moved project would lose it.
        """
        try:
            return Path(os.path.abspath(path)).relative_to(self.root).as_posix()
        except ValueError:
            raise ConfigError(
                f"The path {path} lies outside the project root {self.root}; "
                "choose a folder below the root or set paths.root to a folder that holds it."
            ) from None

    def absolute(self, stored: str) -> Path:
        """Return the absolute path of a stored relative path.

        From an object store, a file is downloaded with the others of its folder, and a folder with all of its content.

        Raises
        ------
        ConfigError
            If `stored` is absolute or leaves the root, by `..` or through a symbolic link.
        """
        path = self.inside(stored)
        return self.store.fetch_to_cache(PurePosixPath(stored).as_posix()) if self.url else path

    def inside(self, stored: str) -> Path:
        """Return the same path as `absolute`, but download nothing."""
        path = PurePosixPath(stored)
        candidate = self.root / path
        try:
            inside = candidate.resolve().is_relative_to(self.root.resolve())
        except (ValueError, RuntimeError, OSError):  # a NUL byte, invalid text, links in a circle
            inside = False
        if path.is_absolute() or ".." in path.parts or not inside:
            raise ConfigError(
                f"The stored path {stored!r} points outside the project root {self.root}; "
                "the file that holds it was edited or comes from another project."
            )
        return candidate

    def configured(self, value: str) -> Path:
        """Return the absolute path of a configured folder; a relative value is below the root."""
        return Path(os.path.abspath(self.root / Path(value).expanduser()))

    def given(self, value: str) -> Path:
        """Return the absolute path of a configured file that is to be read, downloaded where it is one of the project's."""
        path = self.configured(value)
        return self.absolute(self.relative(path)) if self.url and path.is_relative_to(self.root) else path

    def dataset_cache(self, cache_dir: str, dataset: str) -> Path:
        """Folder that holds every fetched version of a data set."""
        return self.configured(cache_dir) / "raw" / dataset

    def downloads(self, cache_dir: str) -> Path:
        """Folder of downloaded archives."""
        return self.configured(cache_dir) / "downloads"

    @property
    def outputs(self) -> Path:
        """Folder of all small files of the project: pointers, runs, splits, reports, locks."""
        return self.root / _OUTPUTS

    @property
    def runs(self) -> Path:
        """Folder that holds one folder per run."""
        return self.outputs / "orchestrator"

    @property
    def test_ledgers(self) -> Path:
        """Folder of the test ledgers of all data sets."""
        return self.outputs / "test_ledger"

    @property
    def patient_key(self) -> Path:
        """File of the secret key that patient names are hashed with."""
        return self.outputs / ".patient_key"

    def mapping_dir(self, dataset: str, run_id: str) -> Path:
        """Folder of one split: the sample table, ``index_remap.json`` and ``split.json``."""
        return self.outputs / "mappings" / dataset / run_id

    def pack_dir(self, out_dir: str, dataset: str, run_id: str) -> Path:
        """Folder of one pack: the pixel array and its sample table."""
        return self.configured(out_dir) / dataset / run_id

    def validation_dir(self, dataset: str, run_id: str) -> Path:
        """Folder of one validation report."""
        return self.outputs / "validation" / dataset / run_id

    def checkpoint_dir(self, out_models: str, dataset: str, run_id: str) -> Path:
        """Folder of one training run's checkpoints."""
        return self.configured(out_models) / dataset / run_id

    def training_dir(self, out_summary: str, dataset: str, run_id: str) -> Path:
        """Folder of one training run's history and curves."""
        return self.configured(out_summary) / dataset / run_id

    def evaluation_dir(self, eval_out: str, dataset: str, run_id: str) -> Path:
        """Folder of one evaluation."""
        return self.configured(eval_out) / dataset / run_id

    @property
    def features(self) -> Path:
        """Folder of the features of all data sets."""
        return self.outputs / "features"

    def features_dir(self, dataset: str, key: str) -> Path:
        """Folder of a pack's features by one encoder; `key` is a hash of everything that the features depend on."""
        return self.features / dataset / key

    @property
    def shards(self) -> Path:
        """Folder of results of a cluster's workers that were not taken yet."""
        return self.outputs / "shards"

    @property
    def studies(self) -> Path:
        """Folder of the studies of all data sets."""
        return self.outputs / "studies"

    def study_dir(self, dataset: str, study: str) -> Path:
        """Folder of a study of a data set: its journal, the predictions of its trials and its outcomes."""
        return self.studies / dataset / study

    def test_ledger(self, dataset: str) -> Path:
        """File that records every look at a data set's test splits, one JSON object per line."""
        return self.test_ledgers / f"{dataset}.jsonl"

    def result_dir(self, kind: str, dataset: str, run_id: str) -> Path:
        """Folder of a result whose place is not configurable, such as ``leaderboard`` or ``cross_validation``."""
        return self.outputs / kind / dataset / run_id

    def comparison(self, a: str, b: str) -> Path:
        """Page of the comparison of two evaluations."""
        return self.outputs / "comparisons" / f"{a}--{b}.html"

    def pointers(self, kind: str) -> Path:
        """Folder of the pointers of a kind, of all data sets."""
        return self.outputs / "pointers" / kind

    def pointer_dir(self, kind: str, dataset: str) -> Path:
        """Folder of a stage's pointers for a data set: ``latest.json`` and ``history/``."""
        return self.pointers(kind) / dataset

    def run_dir(self, run_id: str) -> Path:
        """Folder of one run: plan, manifest, resolved configs and logs."""
        return self.runs / checked_run_id(run_id)

    def lock(self, *names: str) -> Path:
        """Lock file by name: of a data set's ``fetch``, of the ``pointer`` of a kind, of a ``run``."""
        return self.outputs / ".locks" / f"{'-'.join(names).replace('/', '+')}.lock"


def projects_above(path: Path) -> Iterator[Layout]:
    """Yield the projects that a file lies in, innermost first: the folders above it that hold pointers."""
    for folder in path.parents:
        if (folder / _OUTPUTS / "pointers").is_dir():
            named = folder / URL_FILE
            yield Layout(root=folder, url=checked_url(named.read_text()) if named.is_file() else None)
