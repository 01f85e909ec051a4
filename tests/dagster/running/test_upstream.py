from __future__ import annotations

import pytest

from brainmri_core.errors import MissingUpstreamError
from brainmri_core.project.pointers import MappingPointer
from brainmri_core.validate import validate
from brainmri_dagster.running.upstream import pack_for
from tests.dagster.conftest import Workbench
from tests.dagster.defs.champion_case import pack_of

pytestmark = pytest.mark.training


def test_a_mapping_is_named_by_its_pointer_or_by_its_index_remap(packed: Workbench) -> None:
    pack, mapping = pack_of(packed), packed.pointer("dataset_split")
    assert isinstance(mapping, MappingPointer)
    assert mapping.path.endswith("/index_remap.json")
    for named in (str(mapping.pointer_path), mapping.path):
        config = packed.config(f"train.data.mapping_pointer={named}", f"validate.mapping_pointer={named}")
        found = pack_for("train", config, None, packed.job("named"))
        assert (found.pack_sha256, found.mapping_pointer) == (pack.pack_sha256, pack.mapping_pointer)
    assert validate(config.validate_, pack, packed.job("named")).passed
    other = packed.layout.root / "index_remap.json"
    other.write_text("{}")
    with pytest.raises(MissingUpstreamError, match="No mapping pointer names"):
        pack_for("train", packed.config(f"train.data.mapping_pointer={other}"), None, packed.job("other"))
